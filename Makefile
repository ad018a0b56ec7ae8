# Everything runs in a virtual environment of its own: .venv, or VENV=FOLDER.
# Nothing here needs to be run first: each target installs what it needs when that is missing or has changed.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

python   := $(VENV)/bin/python
app_deps := $(VENV)/.installed-app
dev_deps := $(VENV)/.installed-dev

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install app test bench embedded format lint type-check lock

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

install: $(app_deps)  ## install what the app needs

app: $(app_deps)  ## open the page in a browser (ARGS="--port 7861" and other flags of app.py)
	$(python) app.py --open $(ARGS)

test: $(dev_deps)  ## run the tests, two files at a time (ARGS="-k memory" and other flags of pytest)
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(dev_deps)  ## run every benchmark; each prints ratios
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; PYTHONPATH=. $(python) $$script; done

embedded: $(app_deps)  ## train the model that the app opens with (interrupt it and run it again to go on)
	$(python) -m memssl_core train --data drawn:0:20000 --preset demo --run-dir runs/embedded
	test -f runs/embedded/bundle/config.json
	rm -rf assets/embedded
	mkdir -p assets
	cp -R runs/embedded/bundle assets/embedded

format: $(dev_deps)  ## lay the code out and mend what can be mended
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

lint: $(dev_deps)  ## check the layout and the usual mistakes
	$(python) -m ruff check .
	$(python) -m ruff format --check .

type-check: $(dev_deps)  ## check the types
	$(python) -m pyright --pythonpath $(python)

lock: $(dev_deps)  ## write the installed versions of our direct dependencies to requirements.lock
	@{ echo "# Versions that the tests passed with, written by 'make lock'."; \
	   echo "# Install them with: pip install -r requirements.txt -c requirements.lock"; \
	   $(python) -m pip freeze -r requirements.txt -r requirements-dev.txt | sed '/^## The following/,$$d' | grep '=='; \
	 } > requirements.lock

# One pip command for all of it, so that torch and torchvision are chosen together.
$(app_deps): requirements.txt | $(python)
	$(python) -m pip install -r requirements.txt
	@touch $@

$(dev_deps): requirements-dev.txt requirements.txt | $(python)
	$(python) -m pip install -r requirements-dev.txt
	@touch $(app_deps) $@

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

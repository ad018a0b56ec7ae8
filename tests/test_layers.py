"""Imports go one way (docs/DESIGN.md), heavy libraries stay where they belong, and importing costs nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("memssl_core", "analysis", "ui")
LONGEST_FILE = 450  # lines

# Highest first. A part may import only parts on a lower line; parts on one line know nothing of each other.
LAYERS = (
    ("app",),
    ("ui",),
    ("analysis",),
    ("memssl_core",),  # what its __init__ re-exports; the parts below it never import their own face
    ("memssl_core.__main__",),
    ("memssl_core.cli",),
    ("memssl_core.catalogue",),
    ("memssl_core.sources",),
    ("memssl_core.training",),
    ("memssl_core.evaluation", "memssl_core.bundle"),
    ("memssl_core.model",),
    ("memssl_core.data",),
    ("memssl_core.terminal",),
    ("memssl_core.jobs",),
    ("memssl_core.config",),
    ("memssl_core.device",),
    ("memssl_core.paths",),
    ("memssl_core.errors",),
)
HEIGHT = {part: -depth for depth, parts in enumerate(LAYERS) for part in parts}

FAISS_FILES = {
    *("analysis/graph.py", "analysis/index.py", "analysis/neighbours.py"),
    "memssl_core/evaluation/retrieval.py",
}
MAP_FILES = {"analysis/map.py"}
CLUSTER_FILES = {"analysis/clusters.py"}
ONLY_IN_FUNCTIONS_OF = {"faiss": FAISS_FILES, "umap": MAP_FILES, "numba": MAP_FILES, "fast_hdbscan": CLUSTER_FILES}


def our_files() -> list[str]:
    """Every module of ours, as a path relative to the project."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*found, *ROOT.glob("app.py")])


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


OUR_MODULES = {module_name(path) for path in our_files()}


def part_of(module: str) -> str:
    """The layer a module of ours belongs to: `memssl_core.model` for `memssl_core.model.head`."""
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "memssl_core" else names[0]


def imports(path: str, source: str) -> Iterator[tuple[str, bool]]:
    """(absolute module, is it inside a function) for each import of a file."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[tuple[ast.AST, bool]]:
        for child in ast.iter_child_nodes(node):
            yield child, in_function
            yield from walk(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    for node, in_function in walk(ast.parse(source), False):
        if isinstance(node, ast.Import):
            yield from ((alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                member = f"{base}.{alias.name}"
                yield (member if member in OUR_MODULES else base), in_function


def upward_imports(path: str, source: str) -> list[str]:
    """Imports of a higher layer, or of the same line of LAYERS but another part."""
    here = part_of(module_name(path))
    if here == "memssl_core":
        return []  # the face names everything below it, lazily
    wanted = {part_of(module) for module, _ in imports(path, source) if module.split(".")[0] in (*PACKAGES, "app")}
    unknown = {part for part in wanted | {here} if part not in HEIGHT}
    upward = {part for part in wanted - unknown - {here} if here in HEIGHT and HEIGHT[part] >= HEIGHT[here]}
    return [f"{path}: {part} is in no layer" for part in sorted(unknown)] + [
        f"{path} imports {part}, which is not below {here}" for part in sorted(upward)
    ]


def misplaced_libraries(path: str, source: str) -> list[str]:
    """gradio outside the page; faiss, umap or numba outside the functions that may load them."""
    faults = []
    for module, in_function in imports(path, source):
        library = module.split(".")[0]
        if library in ("gradio", "gradio_client") and not path.startswith(("ui/", "app.py")):
            faults.append(f"{path} imports {library}; only ui does")
        if library in ONLY_IN_FUNCTIONS_OF and not (in_function and path in ONLY_IN_FUNCTIONS_OF[library]):
            allowed = ", ".join(sorted(ONLY_IN_FUNCTIONS_OF[library]))
            faults.append(f"{path} imports {library}; only functions of {allowed} do")
    return faults


def second_image_doors(path: str, source: str) -> list[str]:
    """Uses of PIL's Image.open outside the one place that decodes pictures."""
    if path == "memssl_core/data/images.py":
        return []
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "open"]
    opens = [node for node in calls if ast.unparse(node.value).split(".")[-1] == "Image"]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image"]
    opens += [node for node in names if any(alias.name == "open" for alias in node.names)]
    return [f"{path}:{node.lineno} opens a picture; decode_image does that" for node in opens]


def unlisted_libraries(path: str, source: str) -> list[str]:
    """Imports of installed libraries that requirements.txt does not name."""
    libraries = {module.split(".")[0] for module, _ in imports(path, source)}
    unlisted = libraries - {*PACKAGES, "app"} - sys.stdlib_module_names - listed_libraries()
    return [f"{path} imports {library}; requirements.txt lacks it" for library in sorted(unlisted)]


@cache
def listed_libraries() -> set[str]:
    """What can be imported from the distributions that requirements.txt names: `PIL` for `pillow`."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {plain(line) for line in lines if not line.startswith("#")}
    return {library for library, homes in packages_distributions().items() if listed & set(map(plain, homes))}


def plain(requirement: str) -> str:
    """`Huggingface_Hub>=1.16` -> `huggingface-hub`."""
    return re.split(r"[^\w.-]", requirement)[0].replace("_", "-").lower()


RULES = [upward_imports, misplaced_libraries, second_image_doors, unlisted_libraries]


def test_the_walk_sees_our_files():
    assert {"app.py", "memssl_core/errors.py", "memssl_core/model/loss.py"} <= set(our_files())


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_to(rule):
    assert [fault for path in our_files() for fault in rule(path, (ROOT / path).read_text())] == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (upward_imports, "memssl_core/model/head.py", "from memssl_core.training import loop"),
        (upward_imports, "memssl_core/model/head.py", "from ..training.loop import train"),
        (upward_imports, "memssl_core/errors.py", "from . import paths"),
        (upward_imports, "memssl_core/data/images.py", "def f():\n    from memssl_core import decode_image"),
        (upward_imports, "memssl_core/bundle/card.py", "import memssl_core.evaluation.result"),
        (upward_imports, "memssl_core/helpers.py", "import os"),
        (upward_imports, "analysis/workbench.py", "from ui import page"),
        (misplaced_libraries, "analysis/draw.py", "import gradio as gr"),
        (misplaced_libraries, "analysis/neighbours.py", "import faiss"),
        (misplaced_libraries, "analysis/workbench.py", "def search():\n    import faiss"),
        (misplaced_libraries, "analysis/clusters.py", "import fast_hdbscan"),
        (second_image_doors, "ui/attention.py", "from PIL import Image\nImage.open('x.png')"),
        (second_image_doors, "ui/attention.py", "import PIL.Image\nPIL.Image.open('x.png')"),
        (second_image_doors, "ui/attention.py", "from PIL.Image import open"),
        (unlisted_libraries, "analysis/draw.py", "import a_library_nobody_listed"),
    ],
)
def test_a_breach_is_found(rule, path, source):
    assert rule(path, source)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (
            upward_imports,
            "memssl_core/training/loop.py",
            "from memssl_core.training import events\nfrom .. import errors",
        ),
        (upward_imports, "ui/page.py", "import analysis, memssl_core\nfrom memssl_core.model import head"),
        (misplaced_libraries, "ui/page.py", "import gradio as gr"),
        (misplaced_libraries, "analysis/neighbours.py", "def search():\n    import faiss"),
        (second_image_doors, "analysis/draw.py", "from pathlib import Path\nPath('x').open()"),
        (unlisted_libraries, "analysis/draw.py", "import os, PIL, faiss, sklearn"),
    ],
)
def test_what_is_allowed_passes(rule, path, source):
    assert rule(path, source) == []


def test_no_file_is_too_long_to_read():
    scripts = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path: len(path.read_text().splitlines()) for path in [*map(ROOT.joinpath, our_files()), *scripts]}
    assert {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


RUN_AS_MODULE = """
import runpy, sys
sys.argv = ["memssl_core", *{arguments}]
try:
    runpy.run_module("memssl_core", run_name="__main__")
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "script",
    [
        "import memssl_core",
        "import app",
        RUN_AS_MODULE.format(arguments=["--help"]),
        RUN_AS_MODULE.format(arguments=["train", "--help"]),
    ],
    ids=["import memssl_core", "import app", "--help", "train --help"],
)
def test_torch_waits_until_it_is_needed(script):
    report = "\nimport sys; print('loaded:', sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script + report], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "loaded: []"

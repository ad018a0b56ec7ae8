"""What the documents promise is there: commands, flags, targets, links; and nothing in them points at one machine."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]]
VERBS = [
    (package, verb)
    for package in ("memssl_core", "analysis")
    for verb in importlib.import_module(f"{package}.cli").VERBS
]
FOLDERS = ("memssl_core", "analysis", "ui", "assets", "benchmarks", "docs", "tests")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<(?:img|source)[^>]+src(?:set)?=\"([^\"]+)\"")
PACKAGE_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|deb\.debian\.org|anaconda\.org"
    r"|--(?:extra-)?index-url|--find[-]links"
)
MACHINE_PATH = re.compile(r"(?<![\w.\-/])/(?:work|root)/\w|\.\./shared\b|\.\./\.library\b")


@cache
def help_of(*command: str) -> str:
    """What `python COMMAND --help` prints on standard output; it has to end well."""
    run = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def commands_in(text: str) -> list[str]:
    """The lines of a document's fenced blocks, continuation lines joined, comments left out."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def tracked_texts() -> list[tuple[str, str]]:
    """(path, text) of every text file that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [path for path in listed.stdout.decode().split("\0") if path and (ROOT / path).is_file()]
    contents = [(path, (ROOT / path).read_bytes()) for path in paths]
    return [(path, data.decode(errors="replace")) for path, data in contents if b"\0" not in data]


@pytest.mark.parametrize(("package", "verb"), VERBS)
def test_every_verb_has_help_and_a_readme_example(package, verb):
    assert f"python -m {package} {verb} " in README
    assert "usage:" in help_of("-m", package, verb).lower()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands_in((ROOT / document).read_text(encoding="utf-8")):
        words = line.split()
        if words[0] == "make":
            assert {word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)} <= targets, line
        verb = re.match(r"python -m (memssl_core|analysis) (\S+)", line)
        page = re.match(r"python app\.py\b", line)
        if verb:
            assert verb.groups() in VERBS, line
        if verb or page:
            text = help_of("-m", *verb.groups()) if verb else help_of("app.py")
            flags = re.findall(r"(?<=\s)--[a-z][\w-]*", line)
            assert [flag for flag in flags if not re.search(rf"{flag}\b", text)] == [], line


def test_the_readme_has_the_two_commands():
    assert {"make app", "make test"} <= set(commands_in(README))


def test_the_readme_opens_with_a_space():
    front = dict(re.findall(r"^(\w+): (.+)$", README.split("---\n")[1], re.MULTILINE))
    locked = re.search(r"^gradio==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert README.startswith("---\n") and front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    assert len(front["short_description"].strip('"')) <= 60  # a Space refuses more
    assert locked and front["sdk_version"] == locked[1]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    found = [first or second for first, second in LINK.findall(path.read_text(encoding="utf-8"))]
    local = [link.split("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []
    assert not re.search(r"!\[[^\]]*\]\(https?:", path.read_text(encoding="utf-8")), "pictures come with the project"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*|app\.py)`", (ROOT / document).read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("pattern", [PACKAGE_HOST, MACHINE_PATH], ids=["package hosts", "one machine's paths"])
def test_no_file_names(pattern):
    assert [f"{path}: {hit[0]}" for path, text in tracked_texts() for hit in [pattern.search(text)] if hit] == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (PACKAGE_HOST, "see https://py" + "pi.org/simple"),
        (PACKAGE_HOST, "pip install --index" + "-url X"),
        (MACHINE_PATH, "cd /wo" + "rk/main"),
        (MACHINE_PATH, "see ../sha" + "red/DESIGN.md"),
    ],
)
def test_such_names_are_found(pattern, text):
    assert pattern.search(text)

"""Starting the program: which address is bound, and how a refusal reads."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import app
from memssl_core.errors import ConfigError
from ui.context import Training

ROOT = Path(app.__file__).parent


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound.getsockname()[1]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch):
    for name in ("GRADIO_SERVER_PORT", "PORT", "GRADIO_SERVER_NAME", "SYSTEM", "MEMSSL_LOGIN"):
        monkeypatch.delenv(name, raising=False)


def test_a_port_that_was_asked_for_is_bound_or_refused(taken: int, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=f"Port {taken} at 127.0.0.1 cannot be used"):
        app.bind(app.Arguments(port=taken))
    monkeypatch.setenv("PORT", str(taken))
    with pytest.raises(ConfigError, match=str(taken)):
        app.bind(app.Arguments())
    with pytest.raises(ConfigError, match="does not exist"):
        app.bind(app.Arguments(port=70_000))
    monkeypatch.delenv("PORT")
    monkeypatch.setattr(app, "FIRST_PORT", taken)
    monkeypatch.setattr(app, "LAST_PORT", taken)
    with pytest.raises(ConfigError, match=f"Every port from {taken} to {taken}"):
        app.bind(app.Arguments())


def test_without_one_the_first_free_port_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "FIRST_PORT", taken)
    monkeypatch.setattr(app, "LAST_PORT", taken + 99)
    with app.bind(app.Arguments()) as bound:
        assert taken < bound.getsockname()[1] <= app.LAST_PORT
        assert app.address(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}/"
        assert app.is_loopback(bound)


def test_who_is_let_in(monkeypatch: pytest.MonkeyPatch):
    assert app.chosen_host(app.Arguments()) == "127.0.0.1"
    assert app.chosen_host(app.Arguments(public=True)) == "0.0.0.0"
    assert app.chosen_host(app.Arguments(public=True, host="10.0.0.1")) == "10.0.0.1"
    monkeypatch.setenv("SYSTEM", "spaces")
    assert app.chosen_host(app.Arguments()) == "0.0.0.0"


def test_a_refusal_is_one_sentence(taken: int):
    done = subprocess.run([sys.executable, "app.py", "--port", str(taken)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "--port" in done.stderr


def test_flags_for_folders_may_be_repeated(tmp_path: Path):
    given = tyro.cli(app.Arguments, args=["--root", "a=x", "--root", "b=y", "--runs", str(tmp_path)])
    assert given.root == ("a=x", "b=y") and given.runs == tmp_path and app.Arguments().root == ()
    with pytest.raises(ConfigError, match="there is no folder nowhere"):
        app.main(app.Arguments(root=("photos=nowhere",)))


def test_what_the_page_is_built_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built: list[dict] = []

    def build(opening, **given):
        built.append(given)
        raise ConfigError("enough")

    monkeypatch.setattr("ui.page.build", build)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for public in (False, True):  # also behind a proxy on this machine
        with pytest.raises(ConfigError, match="enough"):
            app.main(app.Arguments(host="127.0.0.1", public=public, root=(f"a={tmp_path}",), runs=tmp_path))
    assert [given["public"] for given in built] == [False, True]
    assert built[0]["roots"] == {"a": tmp_path} and built[0]["runs"] == tmp_path
    assert [given["training"] for given in built] == [Training(), None] and built[0]["login"] is None
    monkeypatch.setenv("MEMSSL_LOGIN", "ada:secret")
    with pytest.raises(ConfigError, match="enough"):
        app.main(app.Arguments(host="127.0.0.1", public=True, train=True))
    assert built[2]["login"] and built[2]["training"] == Training(runs=20, hours=24, gigabytes=20)


def test_training_for_visitors_needs_a_login_and_has_limits():
    offered = app.training_of
    assert offered(app.Arguments(), public=False, has_login=False) == Training()
    assert offered(app.Arguments(max_runs=3, at_once=2), public=False, has_login=False) == Training(at_once=2, runs=3)
    assert offered(app.Arguments(), public=True, has_login=True) is None
    given = app.Arguments(train=True, max_hours=1.5)
    assert offered(given, public=True, has_login=True) == Training(runs=20, hours=1.5, gigabytes=20)
    with pytest.raises(ConfigError, match="MEMSSL_LOGIN=NAME:PASSWORD"):
        offered(given, public=True, has_login=False)
    for wrong in ({"at_once": 0}, {"max_runs": 0}, {"max_hours": -1.0}, {"max_gigabytes": float("inf")},
                  {"max_gigabytes": float("nan")}):  # fmt: skip
        (name,) = wrong
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is .* above 0"):
            offered(app.Arguments(**wrong), public=False, has_login=False)


def test_a_server_for_others_without_a_login_does_not_train(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="--train lets visitors from elsewhere start training, so it needs a login"):
        app.main(app.Arguments(host="0.0.0.0", train=True))


def test_the_socket_answers_before_torch_and_ctrl_c_ends_it_cleanly():
    script = (
        "import sys, app, tyro;"
        "import ui.context; heavy = {'torch', 'timm', 'datasets'};"
        "ui.context.open_source = lambda *given: print(heavy & {*sys.modules}, flush=True);"
        "app.main(app.Arguments(model='none', offline=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    assert re.match(r"Open http://127\.0\.0\.1:\d+/ ", process.stdout.readline())
    assert process.stdout.readline() == "set()\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in errors

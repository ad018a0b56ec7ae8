"""A picture by its address: public hosts only, whatever a name or a redirect says, within limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser.pictures import photo, upload

from memssl_core.errors import ImageError
from ui import fetching
from ui.context import Context
from ui.fetching import MAX_URL, fetch, is_public
from ui.tray import add_picture

PNG = upload(photo(64, 48), "a.png", "PNG")["buffer"]
anywhere = lambda address: True


class Host(BaseHTTPRequestHandler):
    """Answers by path; `asked` are the paths and the names it was called by."""

    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Host"]))
        kind, _, rest = self.path[1:].partition("?")[0].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        self.send_response(200 if kind in ("a.png", "slow", "drip", "long", "endless") else 404)
        if kind == "long":
            self.send_header("Content-Length", str(60_000_000))
        self.end_headers()
        if kind == "a.png":
            self.wfile.write(PNG)
        if kind == "slow":
            time.sleep(1)
        while kind in ("endless", "drip"):
            try:
                self.wfile.write(b"x" * (1_000_000 if kind == "endless" else 1))
            except OSError:
                return
            time.sleep(0.05 if kind == "drip" else 0)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
     "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "fec0::1", "::7f00:1",
     "::ffff:0:7f00:1", "64:ff9b:1::7f00:1"],
)  # fmt: skip
def test_no_address_of_a_private_network_is_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    "name",
    ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "127.1", "0", "[::ffff:7f00:1]", "[::]",
     "169.254.169.254", "10.0.0.1", "localhost."],
)  # fmt: skip
def test_no_spelling_of_this_machine_is_connected_to(name: str, host: str, monkeypatch: pytest.MonkeyPatch):
    before = len(Host.asked)
    for url in (f"http://{name}:{host.rpartition(':')[2]}/a.png", f"https://{name}/a.png"):
        with pytest.raises(ImageError, match="private network|no such host"):
            fetch(url)
    assert len(Host.asked) == before


@pytest.mark.parametrize(
    "url",
    ["", "a.png", "file:///etc/passwd", "ftp://host/a.png", "gopher://host/", "//host/a.png", "http://", "http:///a",
     "https://me:secret@host/a.png", "http://[::1/a", "data:image/png;base64,AA", "javascript:alert(1)", "http://a b/",
     "http://\0/", f"http://host/{'a' * MAX_URL}", "http://host:99999/"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(ImageError, match=r"no address|no such host|could not be reached"):
        fetch(url)


def test_a_picture_comes_with_its_name(host: str):
    data, name = fetch(f" http://{host}/a.png?size=large#top ", is_allowed=anywhere)
    assert data == PNG and name == "a.png"
    assert fetch(f"http://{host}/to//to//to//a.png", is_allowed=anywhere)[0] == PNG
    with pytest.raises(ImageError, match="more than 3 times"):
        fetch(f"http://{host}/to//to//to//to//a.png", is_allowed=anywhere)


def test_a_redirect_is_checked_like_the_first_address(host: str):
    port = host.rpartition(":")[2]
    allowed = lambda address: address != "127.0.0.2"
    for target in (f"http://127.0.0.2:{port}/a.png", f"https://127.0.0.2:{port}/a.png"):
        with pytest.raises(ImageError, match="private network"):
            fetch(f"http://{host}/to/{target}", is_allowed=allowed)
    for target in ("file:///etc/passwd", "ftp://host/a.png", "http://u:p@host/"):
        with pytest.raises(ImageError, match="no address"):
            fetch(f"http://{host}/to/{target}", is_allowed=anywhere)
    assert all("127.0.0.2" not in name for _, name in Host.asked)


def test_a_name_is_resolved_once_and_all_it_leads_to_is_checked(host: str, monkeypatch: pytest.MonkeyPatch):
    answers: list[list[str]] = []

    def resolved(name, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    port = host.rpartition(":")[2]
    answers[:] = [["127.0.0.1"]]  # a second question would find none
    assert fetch(f"http://pictures.example:{port}/a.png", is_allowed=anywhere)[0] == PNG
    assert not answers and Host.asked[-1] == ("/a.png", f"pictures.example:{port}")
    answers[:] = [["8.8.8.8", "127.0.0.1"]]
    with pytest.raises(ImageError, match="private network"):
        fetch(f"http://pictures.example:{port}/a.png")


@pytest.mark.parametrize(
    ("path", "words"),
    [("drip", "did not come within"), ("slow", "did not come within"), ("long", "larger than 50 MB"),
     ("endless", "larger than 50 MB"), ("nothing", "answered 404")],
)  # fmt: skip
def test_limits_are_kept(host: str, path: str, words: str):
    with pytest.raises(ImageError, match=words):
        fetch(f"http://{host}/{path}", is_allowed=anywhere, total_s=0.4 if path in ("drip", "slow") else 20)


def test_a_host_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for scheme in ("http", "https"):
        with pytest.raises(ImageError, match="could not be reached"):
            fetch(f"{scheme}://127.0.0.1:{port}/a.png", is_allowed=anywhere)


@pytest.fixture
def tray_fetches(host: str, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setattr("ui.tray.fetch", lambda url: fetching.fetch(url, is_allowed=anywhere))
    return lambda context, url: add_picture(context, (), {"url": url, "ticket": 7})


def test_the_tray_takes_a_picture_by_its_address(context: Context, host: str, tray_fetches: Callable):
    visit, answer = tray_fetches(context, f"http://{host}/a.png")
    assert answer["ticket"] == 7 and answer["picture"]["name"] == "a.png" and len(visit) == 1
    kept = context.pictures.get(visit[0])
    assert kept is not None and kept.data == PNG
    for url in (f"http://{host}/nothing", None, 7, {"a": 1}, "file:///etc/passwd"):
        visit, answer = tray_fetches(context, url)
        assert visit == () and "could not be read" in answer["error"]["title"], url


def test_nothing_is_fetched_for_visitors_from_elsewhere_nor_offline(ready, host: str, tray_fetches: Callable):
    before = len(Host.asked)
    for context in (Context("small", ready, public=True), Context("small", ready, offline=True)):
        _, answer = tray_fetches(context, f"http://{host}/a.png")
        assert "upload it" in answer["error"]["text"]
    assert len(Host.asked) == before and Path(__file__).exists()

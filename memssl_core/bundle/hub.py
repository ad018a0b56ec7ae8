"""The Hub: repositories of models brought into its cache, gone on with where they stopped, and sent to it.

Cache, login, offline mode and addresses are huggingface_hub's own (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT).
Files are streamed here and not by its `hf_hub_download`, which throws away what has come when it is stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from filelock import FileLock, Timeout
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from memssl_core.bundle.hub_sentences import NetworkError, Unreachable, check_names, explained, not_here
from memssl_core.errors import BundleError, HubError
from memssl_core.jobs import Emit

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_CONFIG_BYTES = 1 << 20
TRIES, WAIT_S, PROGRESS_S, TIMEOUT_S = 4, 1.0, 0.3, 30.0


def fetch_repo(
    repo: str, revision: str | None = None, *, emit: Emit | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Path:
    """The folder in the Hub's cache that holds a bundle or a plain timm model: its own files only, safetensors only.

    What is there already is not fetched again, and a file that was cut off is gone on with. Offline, and when the Hub
    does not answer, the cached files serve.
    Raises: HubError.
    """

    def choose(files: dict[str, Any], bring: Callable[[str], Path]) -> Iterator[str]:
        if CONFIG not in files:
            raise HubError(f"{repo} has no {CONFIG}, so it is neither a bundle nor a timm model; choose another one.")
        config = read_config(bring(CONFIG).parent)
        if "memssl" in config:
            from memssl_core.bundle.layout import CARD, HASHED, MAP

            yield from (name for name in (*HASHED, MAP, CARD) if name in files)
        elif isinstance(config.get("architecture"), str):
            yield _first_safe(repo, files, WEIGHTS)
        else:
            raise HubError(f"{repo} is neither a bundle nor a timm model: its {CONFIG} names no timm architecture.")

    check_names(repo, revision)
    if (cached := cached_repo(repo, revision)) and _is_commit(revision):
        return cached
    try:
        return _fetch(repo, revision, choose, emit, should_stop)
    except Unreachable as reason:
        if cached:
            return cached
        raise HubError(not_here(repo, revision, reason, _storage(repo))) from reason


def fetch_file(
    repo: str,
    names: Sequence[str],
    *,
    source: str,
    emit: Emit | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """The first of these files that the repository has: from the cache without asking, else from the Hub.

    Args: source, what a person typed for it, for the sentence that says how to bring it. Raises: HubError.
    """
    check_names(repo, None)
    if cached := cached_file(repo, names):
        return cached
    try:
        folder = _fetch(repo, None, lambda files, _: [_first_safe(repo, files, names)], emit, should_stop)
    except Unreachable as reason:
        raise HubError(not_here(repo, None, reason, _storage(repo), source)) from reason
    return next(folder / name for name in names if (folder / name).exists())


def cached_repo(repo: str, revision: str | None = None) -> Path | None:
    """The cached folder of a bundle or a timm model if nothing of it is missing."""
    folder = _snapshot(repo, revision)
    if folder is None or not (folder / CONFIG).is_file():
        return None
    try:
        config = read_config(folder)
    except HubError:
        return None
    if not isinstance(config.get("memssl"), dict):
        known = isinstance(config.get("architecture"), str)
        return folder if known and any((folder / name).is_file() for name in WEIGHTS) else None
    from memssl_core.bundle.layout import BACKBONE, HEAD, MEMORY, TABLE

    ours = config["memssl"]
    parts = [BACKBONE, *([HEAD] if ours.get("head") else []), *([MEMORY, TABLE] if ours.get("memory") else [])]
    return folder if all((folder / name).is_file() for name in parts) else None


def cached_file(repo: str, names: Sequence[str]) -> Path | None:
    """The first of these files in the cached main revision."""
    folder = _snapshot(repo, None)
    return next((folder / name for name in names if (folder / name).is_file()), None) if folder else None


def cached_repos() -> list[tuple[str, int]]:
    """(repository, bytes) of the cached models that look as if they could be opened, in alphabetical order."""
    found = []
    for storage in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repo = "/".join(storage.name.split("--", 2)[1:])
        folder = cached_repo(repo)
        if folder is None and repo.startswith("timm/"):  # fetched by timm: the weights alone
            folder = weights.parent if (weights := cached_file(repo, WEIGHTS)) else None
        if folder:
            found.append((repo, sum(path.stat().st_size for path in folder.iterdir() if path.is_file())))
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a downloaded model. HubError if it is no JSON object, or unreasonably large."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise HubError(f"{CONFIG} is not a readable JSON file; choose another model or ask its owner.")
    return config


# Fetching


def _fetch(repo: str, revision: str | None, choose: Any, emit: Emit | None, should_stop: Callable[[], bool]) -> Path:
    with explained(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        files = {file.rfilename: file for file in info.siblings or []}
        folder = Path()

        def bring(name: str, tell: Callable[[int], None] = lambda _: None) -> Path:
            return _bring(repo, str(info.sha), revision, files[name], tell, should_stop)

        chosen = list(choose(files, bring))
        total, before = sum(files[name].size or 0 for name in chosen), 0
        for name in chosen:
            folder = bring(name, _teller(emit, name, before, total)).parent
            before += files[name].size or 0
        return folder


def _teller(emit: Emit | None, name: str, before: int, total: int) -> Callable[[int], None]:
    told_at = 0.0

    def tell(done: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if emit and (now - told_at > PROGRESS_S or before + done == total):
            told_at = now
            words = f"{name}, {(before + done) / 1e6:.1f} of {total / 1e6:.1f} MB"
            emit("progress", step=before + done, total=total, words=words)

    return tell


def _bring(repo: str, commit: str, revision: str | None, file: Any, tell: Any, should_stop: Any) -> Path:
    """One file in its place in the cache."""
    name, size, digest = file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id
    storage = _storage(repo)
    if not (_is_commit(commit) and isinstance(size, int) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(digest))):
        raise HubError(f"The Hub tells neither size nor hash of {name} in {repo}, so it cannot be checked; try later.")
    placed = storage / "snapshots" / commit / name
    if not placed.is_file():
        blob = storage / "blobs" / digest
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / storage.name / f"{digest}.lock"  # huggingface_hub's own
        for path in (blob, lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                if not blob.exists():
                    part = blob.with_name(f"{digest}.incomplete")
                    url = huggingface_hub.hf_hub_url(repo, name, revision=commit, endpoint=constants.ENDPOINT)
                    _stream(url, part, size, tell, should_stop)
                    if part.stat().st_size != size or _digest(part, len(digest)) != digest:
                        part.unlink()
                        raise HubError(f"{name} of {repo} arrived damaged and was thrown away; fetch it again.")
                    part.replace(blob)
        except Timeout:
            raise HubError(f"{name} of {repo} is being fetched by another program; wait for it to end.") from None
    if not placed.is_file() or _snapshot(repo, revision) != placed.parent:  # with the blob there, only links are made
        placed = Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, endpoint=constants.ENDPOINT))
    if placed.parent.name != commit:
        raise HubError(f"{repo} was changed while it was being fetched; fetch it again.")
    tell(size)
    return placed


def _stream(url: str, part: Path, size: int, tell: Any, should_stop: Any) -> None:
    part.touch()
    tries = 0
    while (have := part.stat().st_size) < size:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={have}-"}
        try:
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
                hf_raise_for_status(response)
                has_resumed = response.status_code == 206
                done = have if has_resumed else 0
                with part.open("ab" if has_resumed else "wb") as file:
                    for chunk in response.iter_bytes():
                        if should_stop():
                            raise HubError("Stopped. Fetch it again to go on where it was.")
                        done += file.write(chunk)
                        tell(done)
                        if done > size:
                            return
        except HfHubHTTPError as reason:
            if reason.response.status_code < 500:
                raise
            tries += 1
        except NetworkError:
            tries += 1
        tries = 0 if part.stat().st_size > have else tries
        if tries >= TRIES:
            raise HubError("The connection to the Hub breaks off again and again; fetch it later, it will go on then.")
        if tries:
            time.sleep(WAIT_S)


def _digest(path: Path, length: int) -> str:
    """Hexadecimal SHA-256 of a large file, or git's SHA-1 of a small one."""
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _first_safe(repo: str, files: Any, names: Sequence[str]) -> str:
    if name := next((name for name in names if name in files), None):
        return name
    if pickled := sorted(name for name in files if name.endswith(PICKLED)):
        raise HubError(
            f"{repo} has its weights only as {pickled[0]}, a pickled file, which could run code and is never opened; "
            "ask its owner for safetensors."
        )
    raise HubError(f"{repo} has no {names[0]}; choose another model.")


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """The cached folder of a revision, whatever is in it."""
    storage = _storage(repo)
    commit = revision
    if not _is_commit(revision):
        try:
            commit = (storage / "refs" / (revision or constants.DEFAULT_REVISION)).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
    folder = storage / "snapshots" / str(commit)
    return folder if _is_commit(commit) and folder.is_dir() else None


def _storage(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


# Sending


@dataclass(frozen=True)
class Published:
    """What was sent, or would be."""

    url: str | None
    """the page of the repository; None after a dry run"""
    files: list[tuple[str, int]]
    """names and bytes"""
    private: bool


def publish(
    folder: str | Path, repo: str, *, public: bool = False, dry_run: bool = False, emit: Emit | None = None
) -> Published:
    """Send a bundle's own files, and nothing else of its folder, to the Hub in one commit.

    A repository that does not exist is made, private unless `public`; one that exists keeps its visibility, and a
    public one is refused unless `public`. Parts that the bundle no longer has are removed there. Only its card is
    changed on the way: it tells how to load the model from the Hub.
    Raises: BundleError unless the folder is a sound bundle; HubError.
    """
    from memssl_core.bundle.card import card, published_card
    from memssl_core.bundle.layout import CARD, HASHED, MAP, open_bundle

    check_names(repo, None)
    folder = Path(folder).expanduser()
    bundle = open_bundle(folder)
    if not folder.is_dir():
        raise BundleError(f"There is no bundle folder named {folder.name}.")
    sent = [name for name in (*HASHED, MAP) if (folder / name).is_file()]
    content: dict[str, bytes | str] = {name: str(folder / name) for name in sent}
    content[CARD] = published_card(bundle.readme or card(bundle.config), repo).encode()
    files = [(name, len(x) if isinstance(x, bytes) else Path(x).stat().st_size) for name, x in content.items()]
    if dry_run:
        return Published(None, files, not public)
    total = sum(size for _, size in files)
    tell = emit or (lambda event, *, step, **facts: None)
    tell("progress", step=0, total=total, words=f"sending {len(files)} files")
    try:
        with explained(repo, None, writing=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a table in a model's repository
            api = HfApi()
            api.create_repo(repo, private=not public, exist_ok=True)
            info = api.model_info(repo, timeout=TIMEOUT_S)
            if not (info.private or public):
                raise HubError(f"{repo} exists and is public; say --public to send the bundle there.")
            old = {file.rfilename for file in info.siblings or []} & {*HASHED, MAP} - content.keys()
            changes: list[Any] = [CommitOperationDelete(name) for name in sorted(old)]
            changes += [CommitOperationAdd(name, x) for name, x in content.items()]
            api.create_commit(repo, changes, commit_message="Publish a bundle")
    except Unreachable as reason:
        raise HubError(f"{reason} Nothing was published; try again with a network.") from reason
    except RuntimeError as reason:  # a file that would not go up
        raise HubError(f"The Hub did not take every file, so nothing was published in {repo}; try again.") from reason
    tell("progress", step=total, total=total, words="sent")
    return Published(f"{constants.ENDPOINT}/{repo}", files, bool(info.private))

"""What goes wrong with the Hub, each in one sentence that says what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from memssl_core.errors import HubError

NetworkError: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that huggingface_hub uses


class Unreachable(Exception):
    """The Hub does not answer, or may not be asked."""


def check_names(repo: str, revision: str | None) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise HubError("This is no name of a model on the Hub; write OWNER/NAME, for example timm/resnet18.a1_in1k.")
    if revision is not None and (not re.fullmatch(r"[\w./-]{1,200}", revision) or ".." in revision):
        raise HubError(f"{repo} cannot have such a revision; write the name of a branch or tag, or a commit.")


@contextmanager
def explained(repo: str, revision: str | None, *, writing: bool = False) -> Iterator[None]:
    """What huggingface_hub raises, as one sentence; Unreachable when the Hub does not answer."""
    page = f"{constants.ENDPOINT}/{repo}"
    token = "set HF_TOKEN to a token that may " + ("write there" if writing else "read it") + ", or run `hf auth login`"
    try:
        yield
    except GatedRepoError as reason:
        raise HubError(f"{repo} is gated: accept its licence at {page}, then {token}.") from reason
    except RepositoryNotFoundError as reason:
        if writing:
            raise HubError(f"The Hub does not let you write to {repo}; {token}.") from reason
        raise HubError(f"The Hub has no model {repo}, or it is private: check the name, or {token}.") from reason
    except RevisionNotFoundError as reason:
        raise HubError(f"{repo} has no revision {revision}; look for its branches and tags at {page}.") from reason
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as reason:
        raise Unreachable("The Hub may not be asked: HF_HUB_OFFLINE is set.") from reason
    except EntryNotFoundError as reason:
        raise HubError(f"{repo} lacks a file that it lists; fetch it again later.") from reason
    except HfHubHTTPError as reason:
        code = reason.response.status_code
        if code in (401, 403):
            licence = "" if writing else f"accept its licence at {page} if it asks for that, and "
            doing = "write to" if writing else "read"
            raise HubError(f"The Hub does not let you {doing} {repo}: {licence}{token}.") from reason
        if code < 500 and code != 429:
            raise HubError(f"The Hub refuses the request for {repo} ({code}); try again later.") from reason
        raise Unreachable("The Hub does not answer.") from reason
    except NetworkError as reason:
        raise Unreachable("The Hub does not answer.") from reason
    except OSError as reason:
        why = reason.strerror or "a file error"
        raise HubError(f"{repo} cannot be kept in the Hub's cache ({why}); make room, or set HF_HOME.") from reason
    except (LookupError, TypeError, ValueError) as reason:
        raise Unreachable("What answers is no Hub: check the network and HF_ENDPOINT.") from reason


def not_here(repo: str, revision: str | None, reason: Unreachable, storage: Path, source: str = "") -> str:
    """The sentence for what is neither to be had from the Hub nor wholly in the cache folder `storage`."""
    title = repo + (f"@{revision}" if revision else "")
    how = "only in part" if any(storage.glob("blobs/*")) else "not"
    again = "" if os.environ.get("HF_HUB_OFFLINE") else "try again later, or "
    command = f"python -m memssl_core fetch {source or 'hub:' + title}"
    return (
        f"{reason} {title} is {how} in its cache here: {again}run `{command}` on a machine with network "
        "and bring its Hub cache (HF_HOME) here."
    )

"""What a person reads when something cannot be done: a title, one sentence, never a path, type or traceback."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import wraps
from typing import Any

from memssl_core.errors import BundleError, DataError, HubError, ImageError, MemsslError, ModelError

log = logging.getLogger("memssl.page")

TITLES = {
    ImageError: "This picture could not be read.",
    ModelError: "This model cannot answer that.",
    BundleError: "The model could not be opened.",
    DataError: "These pictures cannot be used.",
    HubError: "The Hub cannot serve this.",
}


def explain(error: BaseException) -> dict[str, str]:
    """`{title, text}`. A MemsslError speaks for itself; anything else is logged under the id that is shown."""
    if isinstance(error, MemsslError):
        return {"title": TITLES.get(type(error), "That did not work."), "text": str(error)}
    incident = secrets.token_hex(3)
    log.error("incident %s", incident, exc_info=error)
    return {
        "title": "Something went wrong here.",
        "text": f"Try again; if it happens again, the log names it (id {incident}).",
    }


def spoken(answer: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A route whose mistakes a person can mend: they come back as `{error: {title, text}}` in an ordinary answer."""

    @wraps(answer)
    def speak(*arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return answer(*arguments, **named)
        except MemsslError as reason:
            return {"error": explain(reason)}

    return speak

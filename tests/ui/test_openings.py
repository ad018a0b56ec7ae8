"""Several visitors, one opening; who waits no longer stops nothing that another waits for."""

from __future__ import annotations

import threading

import pytest

from memssl_core.errors import ModelError
from ui.openings import AT_ONCE, Opening, Openings


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.openings.SHORT_S", 0.01)


class Held:
    """An opener that waits until it is let go, and counts how often it was asked."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.let_go, self.asked, self.error = threading.Event(), [], error

    def __call__(self, opening: Opening) -> str:
        self.asked.append(opening)
        opening.tell("reading", 3, 10)
        self.let_go.wait(10)
        if self.error:
            raise self.error
        return "handle"


def end(held: Held, openings: Openings, ticket: str) -> Opening:
    opening = openings.get(ticket)
    assert opening
    held.let_go.set()
    assert opening.over.wait(10)
    return opening


def test_two_visitors_share_one_opening():
    openings = Openings(held := Held())
    one, two = openings.begin("a"), openings.begin("a")
    assert one != two and len(held.asked) == 1 and openings.get(one) is openings.get(two)
    facts = held.asked[0].facts()
    assert (facts["state"], facts["words"], facts["done"], facts["total"]) == ("loading", "reading", 3, 10)
    assert end(held, openings, one).handle == "handle" and held.asked[0].state == "ready"


def test_of_two_who_wait_one_may_go():
    openings = Openings(held := Held())
    one, two = openings.begin("a"), openings.begin("a")
    openings.cancel(one)
    openings.cancel(one)
    assert openings.get(one) is None and held.asked[0].is_wanted
    openings.cancel(two)
    assert not held.asked[0].is_wanted
    later = openings.begin("a")  # starts anew: the first one was told to end
    assert len(held.asked) == 2 and end(held, openings, later).handle == "handle"


def test_a_failure_is_a_sentence_and_the_next_try_is_a_new_one():
    openings = Openings(held := Held(error=ModelError("There is no such model; name another.")))
    opening = end(held, openings, openings.begin("a"))
    assert opening.state == "failed" and opening.problem
    assert opening.problem["text"] == "There is no such model; name another."
    openings.begin("a")
    assert len(held.asked) == 2


def test_not_everything_is_opened_at_once():
    openings = Openings(held := Held())
    for number in range(AT_ONCE):
        openings.begin(str(number))
    with pytest.raises(ModelError, match="try again"):
        openings.begin("one more")
    held.let_go.set()

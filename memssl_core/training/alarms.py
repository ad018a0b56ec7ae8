"""What the events of a run say is going wrong, each in a sentence with the next thing to try (docs/METHOD.md), and the
curves of small runs, healthy and broken, to compare with (assets/reference)."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memssl_core.config import TrainConfig
from memssl_core.jobs import read_events

Verdict = str | None
"""a sentence: it is wrong; "": it is well; None: it cannot be told, and what was said stands"""

# Judgements of ours, checked against the runs in assets/reference (their README has the figures).
MIN_TURNOVER = 16  # steps from writing a slot to overwriting it, K / B
MAX_SHARE = 1 / 4  # of the pictures that the memory may hold, K / N
BLOCKS = 8
COLLAPSED = 0.01  # collapse gauge
ONE_POINT = 0.9  # mean cosine of different pictures
MIN_RANK = 1.5  # RankMe of the embeddings
MIN_DRIFT = 0.9  # cosine with a key as old as the memory
STILL = 0.99  # the same, of a teacher that hardly moves
NO_GAIN = 0.97  # loss / ln S
WAITING = 0.5  # share of the time
CLIPPED = 0.25  # share of the tensors
SELF_MATCH = 0.05  # share of the pictures; a memory of a quarter of them cannot give more than 0.03
EVENTS = 10  # the least that is judged by
LONG_EVENTS = 20
MOST_EVENTS = 400
STARVING_S = 60.0


class Alarms:
    """A listener of a run's events that gives sentences to emit as `alarm` events.

    Args: images, N pictures of the data; steps, length of the run; steps_per_epoch; cores, for the loader's processes
        (None: those of this machine).
    Each kind of alarm is given once, and again only after it had passed.
    """

    def __init__(
        self, config: TrainConfig, images: int, steps: int, steps_per_epoch: int, *, cores: int | None = None
    ) -> None:
        self.config, self.images, self.steps = config, images, steps
        self.cores = cores or os.cpu_count() or 1
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.turnover = math.ceil(config.memory_slots / config.batch_size)
        self.warmup = round(config.warmup_epochs * self.steps_per_epoch)
        self.events = min(MOST_EVENTS, max(EVENTS, math.ceil(self.turnover / config.log_every)))
        self._recent: deque[dict[str, float]] = deque(maxlen=max(LONG_EVENTS, self.events))
        self._first: list[dict[str, float]] = []  # after the memory was filled: what progress is measured against
        self._has_moved = False
        self._drifts: list[float] = []  # cosines with keys as old as the memory, probe by probe
        self._waits: list[float] = []  # shares, one after another, in which the loader was too slow
        self._waited_s = 0.0
        self._sounding: set[str] = set()

    def hear(self, event: str, step: int, **facts: Any) -> list[str]:
        """Sentences that this event gives rise to; `facts` as in events.jsonl, what is not a number is passed over."""
        known: dict[str, float] = {
            name: value for name, value in facts.items() if isinstance(value, int | float) and value == value
        }
        if event == "started" and step == 0:
            return self._news({"sizes": self._sizes(), "fill": self._fill(), "temperatures": self._temperatures()})
        if event == "probe":
            return self._news({"drift": self._drift(step, known), "rank": self._rank(step, known)})
        if event != "step" or not {"loss", "collapse_gauge"} <= known.keys():
            return []
        since = max(0, step - self._recent[-1]["step"]) if self._recent else self.config.log_every
        self._recent.append({**known, "step": step})
        self._measure_progress(step)
        collapse = self._collapse(step)
        verdicts = {
            "collapse": collapse,
            "loader": self._loader(known, round(since)),
            "clipped": self._clipped(step),
            "self_match": self._self_match(),
        }
        if not collapse and "collapse" not in self._sounding:
            verdicts["plateau"] = self._plateau(step)
        return self._news(verdicts)

    def _news(self, verdicts: dict[str, Verdict]) -> list[str]:
        news = [sentence for kind, sentence in verdicts.items() if sentence and kind not in self._sounding]
        self._sounding |= {kind for kind, sentence in verdicts.items() if sentence}
        self._sounding -= {kind for kind, sentence in verdicts.items() if sentence == ""}
        return news

    # At the start, from the sizes

    def _sizes(self) -> Verdict:
        slots, batch, images = self.config.memory_slots, self.config.batch_size, self.images
        is_short, is_large = slots < MIN_TURNOVER * batch, slots > MAX_SHARE * images
        if not (is_short or is_large):
            return ""
        best_batch, best_slots = advised_sizes(images, batch)
        told = f"memory_slots {best_slots} with block_size {max(1, best_slots // BLOCKS)}"
        if best_batch < batch:
            told = f"batch_size {best_batch}, {told}, or at least {round(MIN_TURNOVER / MAX_SHARE) * batch} pictures"
        if is_large:
            meets = f"{own_key_share(slots, images):.0%}"
            return (
                f"memory_slots {slots} is more than a quarter of the {images} pictures: {meets} of the pictures meet "
                f"an older key of their own, and recognising it is an easy way out. Try {told}."
            )
        return (
            f"memory_slots {slots} turns over in {slots / batch:.3g} steps of {batch} pictures: what a view is "
            f"compared with is little and all recent. Keep at least {MIN_TURNOVER} steps; try {told}."
        )

    def _fill(self) -> Verdict:
        if self.turnover <= self.steps / 2:
            return ""
        slots, keys = self.config.memory_slots, self.steps * self.config.batch_size
        is_ever = self.turnover <= self.steps
        when = f"full only from step {self.turnover} of {self.steps} on" if is_ever else "never full in this run"
        return (
            f"The memory is {when}: it writes {keys} keys to {slots} slots, and until memory_fill is 1 "
            "views are compared with noise and the other gauges say little. Try at least "
            f"{4 * self.turnover} steps, or memory_slots {power_of_two(keys / 4)}."
        )

    def _temperatures(self) -> Verdict:
        warmest = max(self.config.teacher_temperature, self.config.teacher_temperature_start)
        if warmest < self.config.student_temperature:
            return ""
        return (
            f"teacher_temperature {warmest:g} is not below student_temperature {self.config.student_temperature:g}: "
            f"the targets are blurrier than what is to match them, and nothing is learned. Try {self._cooler():g}."
        )

    # While it runs

    def _collapse(self, step: int) -> Verdict:
        window = self._last(self.events)
        if step < self.turnover * 3 or not _are_full(window):
            return None
        verdict = _all_or_none([event["collapse_gauge"] < COLLAPSED for event in window])
        if not verdict:
            return "" if verdict is False else None
        mean = {name: fmean(event[name] for event in window) for name in window[0] if all(name in e for e in window)}
        conditional, marginal = mean["conditional_entropy"], mean["marginal_entropy"]
        spread = mean.get("spread", 0.0)
        if conditional > 0.9:
            what = "Uniform collapse: the teacher tells no slots apart"
        elif marginal < 0.1:
            what = "Point collapse: every picture recalls the same one slot"
        else:
            what = "Collapse: every picture recalls the same slots"
        why = f", as all projections lie at nearly one point (mean cosine {spread:.2f})" if spread > ONE_POINT else ""
        return (
            f"{what}{why}. Collapse gauge {mean['collapse_gauge']:.4f}, conditional entropy {conditional:.2f}, "
            f"marginal {marginal:.2f} over the last {_span(window)} steps: the loss has nothing left to teach. Stop "
            f"this run and start another with {' and '.join(self._remedies()[:2])}."
        )

    def _plateau(self, step: int) -> Verdict:
        if self._has_moved:
            return ""
        began = max(self.turnover, self.warmup)
        long = max(10 * self.turnover, min(self.steps / 20, 5 * self.steps_per_epoch))
        if step < began + long or len(self._first) < LONG_EVENTS:
            return None
        window, log_s = self._last(LONG_EVENTS), math.log(self.config.block_size)
        loss = fmean(event["loss"] for event in window)
        if loss < NO_GAIN * log_s or not _are_full(window):
            return None
        is_still = bool(self._drifts) and self._drifts[-1] > STILL
        cause = "The teacher hardly moves" if is_still else "The rate may be too low to get anywhere"
        return (
            f"Plateau: the loss stands at {loss:.2f}, about ln {self.config.block_size} = {log_s:.2f} or above, and "
            f"neither it nor the collapse gauge has moved since the memory was filled at step {self.turnover}: nothing "
            f"is learned. {cause}; try lr {self._faster():g}, and if that changes nothing, "
            f"{self._remedies(slower=False)[0]}."
        )

    def _measure_progress(self, step: int) -> None:
        """Whether loss or gauge has left the place where it was when the memory had been filled."""
        if step < max(2 * self.turnover, self.warmup) or self._has_moved:
            return
        if len(self._first) < LONG_EVENTS:
            self._first.append(self._recent[-1])
            return
        window = self._last(LONG_EVENTS)
        loss, was = (fmean(event["loss"] for event in events) for events in (window, self._first))
        gauge, before = (fmean(event["collapse_gauge"] for event in events) for events in (window, self._first))
        some = 0.08 * math.log(self.config.block_size)
        self._has_moved = abs(loss - was) > some or abs(gauge - before) > max(0.01, 0.1 * before)

    def _loader(self, facts: dict[str, float], steps: int) -> Verdict:
        """Args: steps, since the event before."""
        if not {"wait_share", "images_per_s"} <= facts.keys() or not facts["images_per_s"]:
            return None
        if facts["wait_share"] <= WAITING:
            self._waits, self._waited_s = [], 0.0
            return ""
        self._waits.append(facts["wait_share"])
        self._waited_s += steps * self.config.batch_size / facts["images_per_s"]
        if len(self._waits) < LONG_EVENTS or self._waited_s < STARVING_S:
            return None
        share, workers = fmean(self._waits[-LONG_EVENTS:]), self.config.workers
        more = min(self.cores, max(2 * workers, 1))
        advice = (
            f"try workers {more} instead of {workers}"
            if more > workers
            else f"workers {workers} keeps all {self.cores} cores busy, so have smaller pictures read: store them with "
            f"a short side of about {2 * self.config.global_size} px"
        )
        return (
            f"The trainer waits for pictures during {share:.0%} of its time; without that it would be "
            f"{1 / max(1 - share, 0.01):.1f} times as fast. For that, {advice}."
        )

    def _clipped(self, step: int) -> Verdict:
        window = [event for event in self._last(max(LONG_EVENTS, self.events)) if "clipped_share" in event]
        if len(window) < LONG_EVENTS or step < max(2 * self.turnover, self.warmup) + _span(window):
            return None
        verdict = _all_or_none([event["clipped_share"] > CLIPPED for event in window])
        if not (verdict and self._has_moved):
            return "" if verdict is False else None
        share = fmean(event["clipped_share"] for event in window)
        largest = max(event.get("largest_gradient", 0.0) for event in window)
        return (
            f"{share:.0%} of the gradient tensors were longer than clip_norm {self.config.clip_norm:g} over the last "
            f"{_span(window)} steps (the longest {largest:.3g}): the rate is too high to settle. Try lr "
            f"{self.config.lr / 2:g}, and a warm-up of at least {self._warmup_epochs():.2g} epochs."
        )

    def _self_match(self) -> Verdict:
        window = self._last(max(LONG_EVENTS, self.events))
        if len(window) < LONG_EVENTS or not _are_full(window) or not all("self_match_rate" in e for e in window):
            return None
        rate = fmean(event["self_match_rate"] for event in window)
        if rate <= SELF_MATCH:
            return "" if rate < SELF_MATCH / 2 else None
        slots = min(advised_sizes(self.images, self.config.batch_size)[1], self.config.memory_slots // 2)
        expected = own_key_share(self.config.memory_slots, self.images)
        return (
            f"For {rate:.0%} of the pictures the strongest slot is an older key of their own (of {self.images} "
            f"pictures and {self.config.memory_slots} slots {expected:.0%} have one): the model learns to know single "
            f"pictures. Try memory_slots {slots} with block_size {max(1, slots // BLOCKS)}, or more pictures."
        )

    # At the probes

    def _drift(self, step: int, facts: dict[str, float]) -> Verdict:
        if "drift" not in facts or step - facts["drift_steps"] < max(2 * self.turnover, self.warmup):
            return None
        if "collapse" in self._sounding:
            return None
        # a cosine that decays exponentially with the steps (assumed), taken to the age of the oldest key
        self._drifts.append(max(facts["drift"], 1e-9) ** (self.turnover / facts["drift_steps"]))
        verdict = _all_or_none([drift < MIN_DRIFT for drift in self._drifts[-2:]])
        if not verdict or len(self._drifts) < 2:
            return "" if verdict is False else None
        slower = 1 - (1 - self.config.momentum) / 2
        smaller = self.config.memory_slots // 2
        fewer = f", or memory_slots {smaller}" if smaller >= MIN_TURNOVER * self.config.batch_size else ""
        return (
            f"The teacher moves away from its own keys: over the {self.turnover} steps that the memory holds, the "
            f"projections of the probe's pictures keep a cosine of only {self._drifts[-1]:.2f}, so old slots belong to "
            f"another space. Try momentum {slower:g} or lr {self.config.lr / 2:g}{fewer}."
        )

    def _rank(self, step: int, facts: dict[str, float]) -> Verdict:
        if "rankme" not in facts or step < 3 * self.turnover or "collapse" in self._sounding:
            return None
        if facts["rankme"] >= MIN_RANK:
            return ""
        return (
            f"The embeddings lie along little more than one direction (RankMe {facts['rankme']:.2f}): they collapse, "
            f"even where the projections do not yet. Try another run with {' and '.join(self._remedies()[:2])}."
        )

    # What to try

    def _remedies(self, *, slower: bool = True) -> list[str]:
        """Settings to change, the likeliest first; `slower`, also those that slow it down."""
        config = self.config
        is_warm = config.teacher_temperature >= config.student_temperature
        found = [f"teacher_temperature {self._cooler():g} (now {config.teacher_temperature:g})"] if is_warm else []
        if slower:
            if config.momentum < 0.9:
                found.append(f"momentum 0.98 (now {config.momentum:g})")
            found.append(f"lr {config.lr / 4:g} (now {config.lr:g})")
            if self.warmup < self.turnover:
                found.append(f"warmup_epochs {self._warmup_epochs():.2g} (now {config.warmup_epochs:g})")
        if not config.head_batch_norm:
            found.append("head_batch_norm on")
        if not is_warm:
            found.append(f"teacher_temperature {self._cooler():g} (now {config.teacher_temperature:g})")
        return found

    def _faster(self) -> float:
        """Ten times the rate; with AdamW at least the published one, 5e-4 for 256 pictures."""
        return max(10 * self.config.lr, 5e-4 if self.config.optimizer == "adamw" else 0.0)

    def _cooler(self) -> float:
        """Half the teacher's temperature, but not above 0.04 nor below 0.02."""
        return min(max(self.config.teacher_temperature / 2, 0.02), 0.04, 0.4 * self.config.student_temperature)

    def _warmup_epochs(self) -> float:
        """As long as the memory is noise, at least."""
        return max(2 * self.config.warmup_epochs, self.turnover / self.steps_per_epoch)

    def _last(self, count: int) -> list[dict[str, float]]:
        return list(self._recent)[-count:]


def own_key_share(slots: int, images: int) -> float:
    """Share of the pictures whose own key of the epoch before is still stored, with epochs shuffled anew.

    Between the two draws lie N - a + b others, a and b uniform in 0..N: (K/N)^2 / 2 for K <= N, and so on up to 2 N.
    """
    ratio = slots / images
    if ratio <= 1:
        return ratio**2 / 2
    return 1 - (2 - min(ratio, 2)) ** 2 / 2


def advised_sizes(images: int, batch: int) -> tuple[int, int]:
    """(batch_size, memory_slots): the largest power of two up to a quarter of the pictures, at least 16 batches.

    The batch is smaller than asked for where there is no such memory.
    """
    batch = min(batch, max(2, power_of_two(images * MAX_SHARE / MIN_TURNOVER)))
    return batch, max(power_of_two(images * MAX_SHARE), MIN_TURNOVER * batch)


def power_of_two(most: float) -> int:
    """The largest power of two up to `most`, at least 1."""
    return 1 << max(0, math.floor(math.log2(max(most, 1))))


def reference_curves() -> dict[str, list[dict[str, Any]]]:
    """Events of the small runs in assets/reference by name, healthy first: one `started` event with `title`, `steps`,
    `images` and the `config` of the run, then its `step` and `probe` events. Made by benchmarks/reference_runs.py."""
    files = sorted(reference_folder().glob("*.jsonl"), key=lambda path: (path.stem != "healthy", path.stem))
    return {path.stem: read_events(path)[0] for path in files}


def reference_folder() -> Path:
    return Path(__file__).resolve().parents[2] / "assets" / "reference"


def _are_full(window: Sequence[dict[str, float]]) -> bool:
    return len(window) >= EVENTS and all(event.get("memory_fill", 1.0) >= 1 for event in window)


def _all_or_none(signs: Sequence[bool]) -> bool | None:
    """True or False where all agree."""
    return signs[0] if signs and len(set(signs)) == 1 else None


def _span(window: Sequence[dict[str, float]]) -> int:
    """Steps from the first event to the last."""
    return round(window[-1]["step"] - window[0]["step"])

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import replace

import pytest

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.training.alarms import Alarms, advised_sizes, own_key_share, reference_curves

CONFIG = replace(PRESETS["smoke"], memory_slots=512, block_size=64, batch_size=32, log_every=5, steps=1000, workers=2)
IMAGES, TURNOVER, LOG_S = 4096, 16, math.log(64)


def alarms(config=CONFIG, images=IMAGES, cores=8) -> Alarms:
    return Alarms(config, images, config.steps, images // config.batch_size, cores=cores)


def healthy(step: int) -> dict[str, float]:
    done = min(1, step / 1000)
    return {
        "loss": LOG_S * (1 - 0.2 * done),
        "collapse_gauge": 0.1 + 0.3 * done,
        "conditional_entropy": 0.85 - 0.3 * done,
        "marginal_entropy": 0.98,
        "spread": 0.9 - 0.4 * done,
        "self_match_rate": 0.01,
        "memory_fill": min(1, step / TURNOVER),
        "clipped_share": 0.02,
        "largest_gradient": 2.0,
        "wait_share": 0.1,
        "images_per_s": 100.0,
    }


def heard(listener: Alarms, first: int = 1, last: int = 1000, **changed) -> list[tuple[int, str]]:
    """What is said while a healthy run goes from step to step, some facts of it `changed`."""
    return [
        (step, sentence)
        for step in range(first, last + 1, CONFIG.log_every)
        for sentence in listener.hear("step", step, **{**healthy(step), **changed})
    ]


def test_a_healthy_run_is_left_alone():
    listener = alarms()
    assert listener.hear("started", 0, steps=1000, images=IMAGES, resumed=False) == []
    assert heard(listener) == []
    for step, drift in ((0, None), (200, 0.6), (400, 0.95), (600, 0.97)):
        facts = {} if drift is None else {"drift": drift, "drift_steps": 200}
        assert listener.hear("probe", step, rankme=8.0, knn_top1=20.0, **facts) == []
    assert listener.hear("saved", 600) == [] == listener.hear("finished", 1000)


UNIFORM = {"loss": LOG_S, "collapse_gauge": 0.001, "conditional_entropy": 0.995, "marginal_entropy": 0.996}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {**UNIFORM, "spread": 0.99},
            "tells no slots apart, as all projections lie at nearly one point (mean cosine 0.99)",
        ),
        ({**UNIFORM, "spread": 0.3}, "tells no slots apart. Collapse gauge 0.0010"),
        (
            {**UNIFORM, "conditional_entropy": 0.02, "marginal_entropy": 0.02},
            "Point collapse: every picture recalls the same one slot",
        ),
        (
            {**UNIFORM, "conditional_entropy": 0.6, "marginal_entropy": 0.6},
            "every picture recalls the same slots",
        ),
        ({"wait_share": 0.7}, "would be 3.3 times as fast. For that, try workers 4 instead of 2."),
        ({"clipped_share": 0.6, "largest_gradient": 40.0}, "60% of the gradient tensors were longer than clip_norm 3"),
        ({"self_match_rate": 0.3}, "of the pictures the strongest slot is an older key of their own"),
    ],
)
def test_each_failure_is_named_once_and_again_after_it_had_passed(facts, words):
    listener = alarms()
    ((_, sentence),) = heard(listener, 1, 500, **facts)
    assert words in sentence
    assert heard(listener, 501, 750) == []
    assert [words in again for _, again in heard(listener, 751, 1000, **facts)] == [True]


def test_a_collapse_while_the_memory_is_noise_is_no_news():
    assert heard(alarms(), 1, 3 * TURNOVER - 5, **UNIFORM) == []
    assert heard(alarms(), 1, 1000, **UNIFORM, memory_fill=0.5) == []


def test_a_plateau_is_a_loss_at_ln_s_that_nothing_moves():
    draw = random.Random(0)

    def stuck(listener, first, last, level):
        said = []
        for step in range(first, last, 5):
            flat = {"loss": level * LOG_S + draw.gauss(0, 0.2), "collapse_gauge": 0.4 + draw.gauss(0, 0.02)}
            said += [(step, s) for s in listener.hear("step", step, **{**healthy(step), **flat})]
        return said

    listener = alarms()
    ((step, sentence),) = stuck(listener, 1, 1000, 1.2)
    assert step >= 10 * TURNOVER and "ln 64 = 4.16" in sentence and "try lr 0.08," in sentence
    assert stuck(alarms(), 1, 1000, 0.6) == []  # it has learned and rests
    still = alarms()
    still.hear("probe", 100, drift=0.999, drift_steps=40)
    assert "The teacher hardly moves; try lr 0.08" in stuck(still, 1, 1000, 1.2)[0][1]


def test_long_gradients_of_a_run_that_learns_nothing_are_not_blamed_on_the_rate():
    said = heard(alarms(), loss=1.2 * LOG_S, collapse_gauge=0.4, clipped_share=0.6)
    assert [sentence.split(":")[0] for _, sentence in said] == ["Plateau"]


def test_a_short_wait_and_a_machine_without_more_cores():
    facts = {"wait_share": 0.8, "images_per_s": 32 * 100 / 30}  # 100 steps take 30 s
    ((step, sentence),) = heard(alarms(cores=2), **facts)
    assert step == 196
    assert "workers 2 keeps all 2 cores busy" in sentence and "128 px" in sentence


def test_drift_is_told_at_the_second_probe_that_sees_it():
    listener = alarms()
    say = lambda step, drift, steps: listener.hear("probe", step, rankme=8.0, drift=drift, drift_steps=steps)
    assert say(20, 0.1, 20) == []  # before the memory was full
    assert say(100, 0.5, 16) == []
    (sentence,) = say(200, 0.2, 32)  # 0.2 over two turnovers is 0.45 over one
    assert "a cosine of only 0.45" in sentence and "Try momentum 0.99 or lr 0.004." in sentence
    assert say(300, 0.1, 16) == [] and say(400, 0.99, 16) == say(500, 0.99, 16) == []
    assert say(600, 0.1, 16) == [] and len(say(700, 0.1, 16)) == 1


def test_embeddings_that_lie_along_one_direction():
    listener = alarms()
    assert listener.hear("probe", 500, rankme=3.0) == []
    (sentence,) = listener.hear("probe", 600, rankme=1.2)
    assert "RankMe 1.20" in sentence and "lr 0.002 (now 0.008)" in sentence


@pytest.mark.parametrize(
    ("changes", "images", "words"),
    [
        ({}, 4096, None),
        ({}, 1_000_000, None),
        ({"memory_slots": 2048}, 4096, "of the 4096 pictures: 12% of the pictures meet an older key of their own"),
        ({"memory_slots": 2048}, 4096, "an easy way out. Try memory_slots 1024 with block_size 128."),
        ({"memory_slots": 256}, 4096, "turns over in 8 steps of 32 pictures"),
        ({"memory_slots": 256}, 4096, "Keep at least 16 steps; try memory_slots 1024 with block_size 128."),
        ({}, 1000, "Try batch_size 8, memory_slots 128 with block_size 16, or at least 2048 pictures."),
        ({"steps": 10}, 4096, "The memory is never full in this run: it writes 320 keys to 512 slots"),
        ({"steps": 20}, 4096, "The memory is full only from step 16 of 20 on"),
        ({"teacher_temperature": 0.2}, 4096, "teacher_temperature 0.2 is not below student_temperature 0.1"),
    ],
)  # fmt: skip
def test_sizes_are_judged_at_the_start_and_only_there(changes, images, words):
    config = replace(CONFIG, **changes)
    said = alarms(config, images).hear("started", 0, steps=config.steps, images=images, resumed=False)
    assert said == [] if words is None else [words in sentence for sentence in said] == [True]
    assert alarms(config, images).hear("started", 7, resumed=True) == []


def test_presets_with_the_data_they_are_meant_for_are_advised_nothing():
    for name, images in (
        ("vit-s16-800ep", 1_281_167),
        ("vit-b16-400ep", 1_281_167),
        ("demo", 20_000),
        ("smoke", 2_000),
    ):
        config, per_epoch = PRESETS[name], images // PRESETS[name].batch_size
        steps = config.steps or round(config.epochs * per_epoch)
        assert Alarms(config, images, steps, per_epoch).hear("started", 0, resumed=False) == []


@pytest.mark.parametrize(("images", "batch"), [(300, 32), (4096, 32), (50_000, 64), (1_281_167, 128), (40, 16)])
def test_advised_sizes_are_such_that_no_alarm_sounds(images, batch):
    batch, slots = advised_sizes(images, batch)
    assert slots >= 16 * batch and (slots <= images / 4 or images < 128)


def test_share_of_own_keys_is_what_shuffled_epochs_give():
    draw = random.Random(0)
    for images, slots in ((200, 50), (200, 200), (200, 300), (200, 500)):
        stream = [i for _ in range(40) for i in draw.sample(range(images), images)]
        met = [i in stream[max(0, at - slots) : at] for at, i in enumerate(stream) if at >= 10 * images]
        assert sum(met) / len(met) == pytest.approx(own_key_share(slots, images), abs=0.03)


EXPECTED = {
    "healthy": [],
    "uniform-collapse": ["is not below student_temperature", "Uniform collapse"],
    "shared-slots": ["little more than one direction", "Collapse: every picture recalls the same slots"],
    "plateau": ["Plateau"],
    "rate-too-high": ["Uniform collapse"],
}


def test_reference_runs_are_there_and_small():
    curves = reference_curves()
    assert list(curves)[0] == "healthy" and curves.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_alarms_over_the_runs_that_were_really_made(name):
    started, *events = reference_curves()[name]
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{key: value for key, value in started["config"].items() if key in known})
    listener = Alarms(config, started["images"], started["steps"], started["images"] // config.batch_size, cores=8)
    said = [(event["step"], sentence) for event in [started, *events] for sentence in listener.hear(**event)]
    assert [words in sentence for (_, sentence), words in zip(said, EXPECTED[name], strict=True)] == [True] * len(said)

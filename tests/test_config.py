from __future__ import annotations

from dataclasses import replace

import pytest

from memssl_core.config import PRESETS
from memssl_core.errors import ConfigError


@pytest.mark.parametrize(
    "change, words",
    [
        ({"block_size": 300}, "block_size 300 is larger than memory_slots 256"),
        ({"lr": 0.0}, "lr"),
        ({"global_scale": (0.5, 0.2)}, "global_scale"),
        ({"batch_size": 1}, "head_batch_norm"),
        ({"momentum": 1.5}, "momentum"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"accumulate": 3}, "batch_size 16 is not a multiple of accumulate 3"),
        ({"accumulate": 16}, "at least 2 pictures in a micro-batch"),
        ({"sgd_momentum": 1.0}, "sgd_momentum"),
        ({"snapshot_every": 0}, "snapshot_every is 0; it must be at least 1"),
    ],
)
def test_impossible_settings_cannot_be_built(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(PRESETS["smoke"], **change)


def test_a_micro_batch_of_one_is_enough_without_batch_norm():
    assert replace(PRESETS["smoke"], head_batch_norm=False, accumulate=16).batch_size == 16


def test_what_timm_is_offered_leaves_out_what_the_backbone_keeps():
    assert PRESETS["resnet50-100ep"].model_args() == {"img_size": 224}
    assert PRESETS["smoke"].model_args() == {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 2,
    }

"""Plain timm models: their names and files on the Hub, their folders, the way in for their pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg
from torch import Tensor

from memssl_core.bundle import hub
from memssl_core.bundle.layout import CONFIG, Bundle, bundle_config, check_bundle
from memssl_core.data.images import Transform
from memssl_core.errors import BundleError, ConfigError, ModelError
from memssl_core.model.backbone import create_backbone


def plain_bundle(folder: Path) -> Bundle:
    """The bundle of a backbone alone that a folder saved by timm holds (`config.json`, `model.safetensors`).

    Its config may set what a bundle's may, and every tensor must be there. Raises: HubError, BundleError, ModelError.
    """
    told = hub.read_config(folder)
    architecture, looks, args = (told.get(key) or {} for key in ("architecture", "pretrained_cfg", "model_args"))
    if not (isinstance(architecture, str) and isinstance(looks, dict) and isinstance(args, dict)):
        raise BundleError(f"{CONFIG} names no timm architecture, so this is neither a bundle nor a timm model.")
    looks = looks or told  # as older versions of timm saved it
    weights = _weights(folder, looks.get("classifier"))
    args = {key: value for key, value in args.items() if key not in ("num_classes", "in_chans")}
    config = {"architecture": architecture, "model_args": args}
    transform = timm_transform(looks)
    ours = {"transform": {name: list(x) if isinstance(x, tuple) else x for name, x in vars(transform).items()}}
    check_bundle(Bundle(config={**config, "memssl": ours}, backbone=weights))
    with torch.device("meta"):
        backbone = create_backbone(architecture, **args)
    facts = {"license": looks["license"]} if isinstance(looks.get("license"), str) else {}
    config = bundle_config(architecture, backbone, args, transform=transform, provenance=facts)
    return Bundle(config=config, backbone=weights)


def _weights(folder: Path, classifier: Any) -> dict[str, Tensor]:
    """The tensors without those of the classifier."""
    path = next((folder / name for name in hub.WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise BundleError(
            f"This folder has no {hub.WEIGHTS[0]}; pickled weights are never opened, save the model as safetensors."
        )
    try:
        weights = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as reason:
        raise BundleError(f"{path.name} is not a readable safetensors file; copy or download it again.") from reason
    layers = classifier if isinstance(classifier, list) else [classifier]
    dropped = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    return {key: value for key, value in weights.items() if key not in dropped}


def timm_looks(name: str) -> Any:
    """timm's pretrained_cfg of a name such as `vit_small_patch16_224.dino`. ModelError if it has no such weights."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        create_backbone(architecture)  # which says what is near
    try:
        looks = get_pretrained_cfg(name)
    except RuntimeError:
        looks = None
    if looks is None or not looks.hf_hub_id:
        has = ", ".join(timm.list_pretrained(f"{architecture}.*")[:8])
        advice = f"it has {has}" if has else f"try random:{architecture}"
        raise ModelError(f"timm has no weights {name} on the Hub; {advice}.")
    return looks


def timm_files(name: str) -> tuple[str, list[str]]:
    """The Hub repository of a pretrained timm model, and the names that its safetensors file may have."""
    looks = timm_looks(name)
    told = looks.hf_hub_filename or hub.WEIGHTS[0]
    safe = told.rpartition(".")[0] + ".safetensors"
    return looks.hf_hub_id, [told] if told == safe else [safe, *hub.WEIGHTS]


def timm_transform(looks: dict[str, Any]) -> Transform:
    """timm's evaluation transform: short side (squash: both) to crop / crop_pct, rounded down, then the centre crop.

    Args: looks, a pretrained_cfg. Raises: ModelError if it is not usable.
    """
    try:
        crop_px = int(looks["input_size"][-1])
        resize_px = max(crop_px, math.floor(crop_px / float(looks["crop_pct"])))
        mean, std = (tuple(float(x) for x in looks[name]) for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or resize_px > 4096:
            raise ValueError
        crop_mode = "squash" if looks.get("crop_mode") == "squash" else "center"  # "border" is that of a few old models
        return Transform(resize_px, crop_px, str(looks["interpolation"]), mean, std, crop_mode)
    except (ArithmeticError, ConfigError, LookupError, TypeError, ValueError) as reason:
        raise ModelError("This model does not tell in a usable way how its pictures are prepared.") from reason

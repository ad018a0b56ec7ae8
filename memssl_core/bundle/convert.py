"""Official checkpoints of five families -> bundles: choose the entry, strip the prefix, drop the known, load strictly.

Which entry, prefix and tensors: docs/METHOD.md, "Checkpoints and conversion to timm". Nothing in a file is run.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from memssl_core.bundle.card import card
from memssl_core.bundle.layout import Bundle, bundle_config
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Transform, printable
from memssl_core.errors import ModelError
from memssl_core.model.backbone import create_backbone
from memssl_core.model.head import Head
from memssl_core.model.memory import UNKNOWN
from memssl_core.model.positions import Positions

FAMILIES = ("massl", "dino", "ibot", "mocov3", "mae")
TITLES: dict[str, str] = dict(zip(FAMILIES, ("MaSSL", "DINO", "iBOT", "MoCo-v3", "MAE"), strict=True))
DTYPES = {"f16": torch.float16, "f32": torch.float32}

_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
# Sizes the family's own code builds. Of others the number of attention heads is not known, and no shape tells it.
_BUILT = {"dino": ("tiny", "small", "base"), "mocov3": ("small", "base"), "mae": ("base", "large")}
_NAME = re.compile(r"(?:mae_)?(?:vit|deit)_(tiny|small|base|large)(?:_patch(\d{1,3})(?:_(\d{1,4}))?)?(?:_dec\w+)?")
_ENTRIES = ("student", "teacher", "memory_bank", "dino_loss", "ibot_loss", "state_dict", "model")
_PREFIXES = ("module.base_encoder.", "module.backbone.", "backbone.", "")
# What a file of the family may hold beside the backbone (MaSSL: beside backbone and head).
_DROPPED = {
    "massl": "",
    "dino": r"(module\.)?head\.(mlp\..+|last_layer\.weight_[gv])",
    "ibot": r"(module\.)?head\..+|masked_embed",
    "mocov3": r"module\.(base_encoder\.head|momentum_encoder|predictor)\..+",
    "mae": r"mask_token|decoder_(pos_embed|(embed|blocks|norm|pred)\..+)",
}


class _Inert:
    """Stands for a NumPy number or type of the optimizer's state, which MaSSL, DINO and iBOT leave in their files."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


# Classes the reader may name, and what is made in their place: none of NumPy's code runs.
_READABLE: list[Any] = [
    argparse.Namespace,
    (_Inert, "numpy.dtype"),
    (_Inert, "numpy.core.multiarray.scalar"),
    (_Inert, "numpy._core.multiarray.scalar"),
]
_OWNERS = ", ".join(TITLES.values())
_MEND = "check --family and --arch, or get the file again"
_MAX_POSITIONS = 1 + 64 * 64  # 1024 px in patches of 16; official files have 197 or 785


class _UnfitError(ValueError):
    """What is wrong with a file: the rest of a sentence that begins with its name."""


def convert(
    file: str | Path, *, family: str | None = None, architecture: str | None = None, dtype: str = "f16"
) -> Bundle:
    """Read an official MaSSL, DINO, iBOT, MoCo-v3 or MAE checkpoint (or its tensors as .safetensors) into a bundle.

    Args:
        family: one of FAMILIES; None: the one whose layout the file has. A layout that several share is taken for its
            owner's and the bundle's provenance says so.
        architecture: `vit_small` or `vit_small_patch16_224`; None: what the file says or its shapes mean.
        dtype: f16 or f32, of the bundle's weights.
    Raises: ModelError, one sentence, for a file that holds anything but tensors and plain values (never run), or whose
        tensors are not exactly those of the family: no one missing, none unknown, every shape right.
    """
    file = Path(file)
    for what, value, known in (("family", family or "dino", FAMILIES), ("dtype", dtype, tuple(DTYPES))):
        if value not in known:
            raise ModelError(f"{printable(value)!r} is no {what} that can be converted; choose {', '.join(known)}.")
    try:
        return _converted(_read(file), printable(file.name), family, architecture, DTYPES[dtype])
    except _UnfitError as reason:
        raise ModelError(f"{printable(file.name)} {reason}.") from reason


def caution(file: str | Path) -> str | None:
    """What a person should know before a file of this kind is read; None for .safetensors, which can hold no code."""
    if Path(file).suffix == ".safetensors":
        return None
    what = "is a pickle file, which could carry code: only tensors and plain values are read and nothing in it runs"
    return f"{printable(Path(file).name)} {what}; from strangers, prefer .safetensors."


def _converted(
    top: dict[str, Any], source: str, family: str | None, architecture: str | None, dtype: torch.dtype
) -> Bundle:
    entry, families = _layout(top)
    alike, family = family is None and families[1:] != (), family or families[0]
    if family not in families:
        owners = " or ".join(TITLES[name] for name in families)
        raise _UnfitError(f"has the layout of {owners}, not of {TITLES[family]}; leave --family out")
    state, settings = _tensors(top, entry), _settings(top)
    name, model_args = _architecture(state, family, architecture, settings)
    positions: Positions = "timm" if family in ("mocov3", "mae") else "original"
    with torch.device("meta"):
        backbone: Any = create_backbone(name, positions=positions, **model_args)
        head = _head(state) if family == "massl" and entry == "teacher" else None

    own_px = backbone.patch_embed.img_size[0]  # 224; the evaluation transform of all five is 256, then 224

    def network(entry: str) -> dict[str, dict[str, Tensor]]:
        """Backbone and head of one entry, under our names."""
        state = _tensors(top, entry)
        prefix = _prefix(state)
        modules = {"backbone": (prefix, backbone)} | ({"head": (_head_prefix(prefix), head)} if head else {})
        _check(state, list(modules.values()), _DROPPED[family], f"{name} of {TITLES[family]}")
        return {
            part: {key: _cast(state, start + key, dtype) for key in module.state_dict()}
            for part, (start, module) in modules.items()
        }

    teacher = network(entry)
    student = network("student") if head and "student" in top else {}
    memory = _memory(_tensors(top, "memory_bank"), head.out_dim) if head and "memory_bank" in top else None
    block_size = settings.get("partition_size")
    temperatures = {f"{who}_temperature": settings.get(f"{who}_temp") for who in ("student", "teacher") if head}
    temperatures = {key: t for key, t in temperatures.items() if isinstance(t, float) and 0 < t < math.inf}
    config = bundle_config(
        name,
        backbone,
        model_args,
        transform=Transform(round(own_px * 256 / 224), own_px),
        head=head,
        memory_slots=memory and memory.slots,
        block_size=block_size if memory and type(block_size) is int and 0 < block_size <= memory.slots else None,
        **temperatures,
        positions=positions,
        provenance=_provenance(top, source, family, name, alike),
    )
    return Bundle(
        config=config,
        backbone=teacher["backbone"],
        head=teacher.get("head"),
        student={f"{part}.{key}": state[key] for part, state in student.items() for key in state} or None,
        memory=memory,
        readme=card(config),
    )


def _read(file: Path) -> dict[str, Any]:
    """The file's top level. Nothing but tensors, plain values and argparse's Namespace is ever made."""
    if not file.is_file():
        raise _UnfitError("is no file; check the path")
    try:
        if file.suffix == ".safetensors":
            return _nested(safetensors.torch.load_file(file))
        with torch.serialization.safe_globals(_READABLE):
            top = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as reason:
        asked = re.search(r"GLOBAL (\S+)", str(reason)) if isinstance(reason, UnpicklingError) else None
        if not asked:
            raise _UnfitError("is no checkpoint of tensors that can be read; get the file again") from reason
        raise _UnfitError(
            f"holds more than tensors and plain values: reading it would call {printable(asked[1])!r}, so it was "
            "refused and nothing in it ran; convert a copy with the weights alone (no optimizer), best as .safetensors"
        ) from reason
    if not isinstance(top, dict):
        raise _UnfitError(f"holds no named tensors; give a checkpoint of {_OWNERS}")
    return top


def _nested(flat: dict[str, Tensor]) -> dict[str, Any]:
    """A .safetensors file of a layout: `teacher.backbone.norm.weight` belongs to the entry `teacher`."""
    top: dict[str, Any] = {}
    for key, tensor in flat.items():
        entry, _, rest = key.partition(".")
        inside, name = (top.setdefault(entry, {}), rest) if entry in _ENTRIES else (top, key)
        inside[name] = tensor
    return top


def _layout(top: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The entry to use ("" for the file itself) and the families it can belong to, the layout's owner first."""
    if "teacher" in top:
        for sign, family in (("memory_bank", "massl"), ("ibot_loss", "ibot"), ("dino_loss", "dino")):
            if sign in top:
                return "teacher", (family,)
        return "teacher", ("dino", "ibot", "massl")
    entry = next((name for name in ("state_dict", "model") if name in top), "")
    owner = {"state_dict": "ibot", "model": "mae"}.get(entry, "dino")
    state = _tensors(top, entry)
    if any(key.startswith("module.base_encoder.") for key in state):
        return entry, ("mocov3",)
    if any(key.startswith(("mask_token", "decoder_")) for key in state):
        return entry, ("mae",)
    return entry, (owner, *(name for name in FAMILIES if name != owner))


def _tensors(top: dict[str, Any], entry: str) -> dict[str, Tensor]:
    state = top[entry] if entry else top
    if not isinstance(state, Mapping) or not state:
        raise _UnfitError(f"holds no tensors{f' in its entry {entry!r}' if entry else ''}; get the file again")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            where = f"its entry {entry!r} holds" if entry else f"it is not laid out as {_OWNERS}, and holds"
            raise _UnfitError(f"cannot be converted: {where} {_quoted(key)}, which is no tensor; choose another file")
    return dict(state)


def _settings(top: dict[str, Any]) -> dict[str, Any]:
    """The plain arguments the training was started with, as far as the file tells."""
    args = top.get("args")
    told = {"arch": top.get("arch")} | (vars(args) if isinstance(args, argparse.Namespace) else {})
    return {key: value for key, value in told.items() if isinstance(value, (str, int, float))}


def _prefix(state: dict[str, Tensor]) -> str:
    return next(prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in state))


def _head_prefix(prefix: str) -> str:
    return prefix.removesuffix("backbone.") + "head."


def _architecture(
    state: dict[str, Tensor], family: str, told: str | None, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """timm's name and the arguments beside it. What is missing or of a wrong shape is found later, by name."""
    prefix = _prefix(state)
    shape = {key.removeprefix(prefix): tensor.shape for key, tensor in state.items() if tensor.ndim}
    if any(key.startswith("patch_embed.proj.0.") for key in shape):
        raise _UnfitError(
            "has a convolutional stem (vit_conv), which timm's vision transformers lack; use another file"
        )
    width = next((shape[key][-1] for key in ("norm.weight", "cls_token", "pos_embed") if key in shape), 0)
    patch_px = shape.get("patch_embed.proj.weight", (16,))[-1]
    positions = shape.get("pos_embed", (1, 197, 0))[-2:][0]
    named = told or settings.get("arch") or settings.get("model") or f"vit_{_WIDTHS.get(width)}"
    match = _NAME.fullmatch(str(named).partition(".")[0])
    patch_px = int(match and match[2] or patch_px)
    if not match or not 1 <= patch_px <= 64 or positions > _MAX_POSITIONS:
        seen = f"width {width}, patches of {patch_px} px, {positions} positions"
        named = f"{_quoted(named)}, " if width in _WIDTHS else ""
        known = "plain vision transformers tiny, small, base and large (width 192, 384, 768, 1024)"
        raise _UnfitError(f"has the architecture {named}{seen}; only {known} can be converted")
    size, own_px = match[1], int(match[3] or math.isqrt(max(positions - 1, 1)) * patch_px)
    name, model_args = f"vit_{size}_patch{patch_px}_224", {}
    if size not in _BUILT.get(family, _WIDTHS.values()) and not told:
        why = f"a size {TITLES[family]} itself does not build, so that its number of attention heads is not known"
        raise _UnfitError(f"looks like vit_{size}, {why}; if it is that of timm's, add --arch {name}")
    if not timm.is_model(name):
        name, model_args = f"vit_{size}_patch16_224", {"patch_size": patch_px}
    if own_px != 224:
        model_args["img_size"] = own_px
    if (family, size) == ("mocov3", "small"):
        model_args["num_heads"] = 12  # of width 32, where timm has 6 of 64: the shapes are the same
    return name, model_args


def _head(state: dict[str, Tensor]) -> Head:
    """A head of the sizes in the file; 1 where a tensor is missing, which is found later, by name."""
    prefix, head = _prefix(state), _head_prefix(_prefix(state))
    batch_norm = any(key.startswith(f"{head}mlp.6.") for key in state)

    def rows(key: str) -> int:
        return max(1, len(state[key])) if key in state and state[key].ndim else 1

    last = f"{head}mlp.{6 if batch_norm else 4}.bias"
    return Head(rows(f"{prefix}norm.weight"), rows(f"{head}mlp.0.bias"), rows(last), batch_norm=batch_norm)


def _check(state: dict[str, Tensor], modules: list[tuple[str, nn.Module]], dropped: str, what: str) -> None:
    """_UnfitError unless the state's names, but for the dropped ones, and shapes are exactly the modules'."""
    expected = {start + key: value for start, module in modules for key, value in module.state_dict().items()}
    missing = expected.keys() - state.keys()
    surplus = {key for key in state.keys() - expected.keys() if not re.fullmatch(dropped, key)}
    faults = [f"lacks the tensor {min(missing)!r}"] if missing else []
    faults += [f"holds {_quoted(min(surplus))}, which has no place there"] if surplus else []
    if faults:
        raise _UnfitError(f"does not fit {what}: it {' and '.join(faults)}; {_MEND}")
    for key, meant in expected.items():
        is_like = state[key].is_floating_point() if meant.is_floating_point() else state[key].dtype == meant.dtype
        if state[key].shape != meant.shape or not is_like:
            shapes = f"{state[key].dtype} {list(state[key].shape)} instead of {list(meant.shape)}"
            raise _UnfitError(f"does not fit {what}: its tensor {key!r} is {shapes}; {_MEND}")


def _cast(state: dict[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
    """A copy that does not hang on the file."""
    tensor = _whole(state, key)
    cast = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
    if not torch.isfinite(cast).all():
        is_large = torch.isfinite(tensor).all()
        mend = "too large for float16; add --dtype f32" if is_large else "not finite; get the file again"
        raise _UnfitError(f"has values in the tensor {key!r} that are {mend}")
    return cast


def _whole(state: dict[str, Tensor], key: str) -> Tensor:
    """The tensor, if the file holds all of it: one that claims more than is stored could fill the machine."""
    tensor = state[key].detach()
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not dense or tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise _UnfitError(f"does not store the tensor {key!r} as plain numbers; get the file again")
    return tensor


def _memory(bank: dict[str, Tensor], width: int) -> MemoryTable:
    """Columns of the queue are keys. Which pictures they are of and how many came before, the file does not tell.

    It is saved between epochs, each longer than the memory: all slots are taken for written.
    """
    if bank.keys() != {"queue", "queue_ptr"}:
        raise _UnfitError(
            f"has {_quoted(sorted(bank))} in memory_bank, not 'queue' and 'queue_ptr'; get the file again"
        )
    queue, pointer = _whole(bank, "queue"), _whole(bank, "queue_ptr")
    slots = queue.shape[1] if queue.ndim == 2 and queue.shape[0] == width and queue.is_floating_point() else 0
    cursor = int(pointer) if pointer.numel() == 1 and pointer.dtype == torch.int64 else -1
    if not 0 <= cursor < slots:
        found = f"a queue of shape {list(queue.shape)} and the pointer {cursor}"
        raise _UnfitError(f"has {found} in memory_bank, where columns of length {width} are meant; {_MEND}")
    vectors = queue.T.float().numpy()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) <= 1e-2).all():  # NaN is not
        raise _UnfitError("has keys in memory_bank.queue that are not of unit length; get the file again")
    return MemoryTable(
        vectors=vectors / lengths,
        cursor=cursor,
        written=slots + cursor,
        image_id=np.full(slots, UNKNOWN),
        uri=pa.nulls(slots, pa.string()),
        label=np.full(slots, -1),
        class_name=pa.nulls(slots, pa.string()),
        step=np.full(slots, -1),
        box=np.tile([0.0, 0.0, 1.0, 1.0], (slots, 1)),
        thumbnails=pa.nulls(slots, pa.binary()),
    )


def _provenance(top: dict[str, Any], source: str, family: str, architecture: str, alike: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": f"{architecture}, {'read as ' if alike else ''}{TITLES[family]}"}
    told |= {"family": f"{family} or another with its layout" if alike else family}
    told |= {"architecture": architecture, "source": source}
    if type(epoch := top.get("epoch")) is int and epoch >= 0:
        told["epochs"] = epoch + (family == "mae")  # MAE counts from 0, the others count epochs done
    if alike:
        told["note"] = f"Files of other families look like this one of {TITLES[family]}; --family names another."
    return told


def _quoted(text: object) -> str:
    return repr(printable(str(text)[:120]))

"""A bundle: a folder that is a model with its memory. The only module that knows the file names inside it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from memssl_core.bundle.table import MemoryTable, check_rows, check_unit_rows, check_vectors, pack_rows, read_rows
from memssl_core.data.images import Transform
from memssl_core.errors import BundleError, ConfigError, ModelError
from memssl_core.model.backbone import any_size_args, create_backbone, embedding_width
from memssl_core.model.head import Head
from memssl_core.model.positions import Positions

FORMAT_VERSION = 1
CONFIG, BACKBONE, HEAD, STUDENT = "config.json", "model.safetensors", "head.safetensors", "student.safetensors"
MEMORY, TABLE, CARD = "memory.safetensors", "memory.parquet", "README.md"
MAP = "map.parquet"  # of the slots, see `maps.py`; not hashed
HASHED = (CONFIG, BACKBONE, HEAD, STUDENT, MEMORY, TABLE)

MAX_CONFIG_BYTES = 1 << 20
_AGAIN = "copy or download the bundle again"
# Arguments that only shape the network. Anything else timm would take (files to load, caches) is refused.
_SIZES = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "reg_tokens", "mlp_ratio", "init_values"}
_SWITCHES = {"qkv_bias", "qk_norm", "proj_bias", "class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm"}
_GIVEN = {"num_classes": 0, "dynamic_img_size": True, "strict_img_size": False, "in_chans": 3}


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """What a bundle folder holds. Weights keep the dtype they are given in (float16 or float32), on disk too."""

    config: dict[str, Any]
    """timm's config.json with the key "memssl"; `bundle_config` makes one"""
    backbone: dict[str, Tensor]
    head: dict[str, Tensor] | None = None
    student: dict[str, Tensor] | None = None
    """keys `backbone.*` and `head.*`"""
    memory: MemoryTable | None = None
    readme: str = ""
    stored_hash: str = field(default="", repr=False)
    """bundle hash of the files this was read from"""

    @property
    def model_hash(self) -> str:
        return model_hash(self.backbone, self.head)

    @property
    def bundle_hash(self) -> str:
        """SHA-256 over sorted names and contents of the files, README.md and map.parquet left out."""
        return self.stored_hash or _bundle_hash({name: write() for name, write in self._writers().items()})

    def make_backbone(self) -> nn.Module:
        """The teacher's backbone, float32, in eval mode."""
        return _loaded(_make_backbone, self.config, self.backbone)

    def make_head(self) -> Head | None:
        """The teacher's head, float32, in eval mode."""
        return None if self.head is None else _loaded(_make_head, self.config, self.head)

    def make_student(self) -> tuple[nn.Module, Head] | None:
        """The student's backbone and head, float32, in eval mode."""
        if self.student is None:
            return None
        backbone = _loaded(_make_backbone, self.config, _part(self.student, "backbone."))
        return backbone, _loaded(_make_head, self.config, _part(self.student, "head."))

    def make_transform(self) -> Transform:
        """The model's own way in for pictures."""
        looks = _get(self.config["memssl"], "transform", dict)
        try:
            sizes = [_get(looks, name, int) for name in ("resize_px", "crop_px")]
            mean, std = ([float(x) for x in _get(looks, name, list)] for name in ("mean", "std"))
            if max(sizes) > 4096 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError
            names = [_get(looks, "interpolation", str), _get(looks, "crop_mode", str, "center")]
            return Transform(*sizes, names[0], tuple(mean), tuple(std), names[1])  # type: ignore[arg-type]
        except (ConfigError, TypeError, ValueError) as reason:
            raise BundleError(f"{CONFIG} has an unusable transform ({looks}); {_AGAIN}.") from reason

    def save(self, folder: str | Path) -> None:
        """Write the folder, or replace the bundle that is there; a failure leaves what was there before.

        Raises: BundleError if the parts do not belong together, or if `folder` holds something that is no bundle.
        """
        check_bundle(self)
        folder = Path(folder).absolute()
        before, saving = folder.with_name(f".{folder.name}.before"), folder.with_name(f".{folder.name}.saving")
        _restore(folder, before)
        if folder.exists() and not _is_bundle(folder):
            raise BundleError(f"{folder.name} exists and is not a bundle; choose a new folder to save into.")
        shutil.rmtree(saving, ignore_errors=True)
        saving.mkdir(parents=True)
        for name, write in self._writers().items():
            _write(saving / name, write())
        _write(saving / CARD, self.readme.encode())
        if folder.exists():
            folder.rename(before)
        saving.rename(folder)
        shutil.rmtree(before, ignore_errors=True)

    def _writers(self) -> dict[str, Callable[[], bytes]]:
        config = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        writers: dict[str, Callable[[], bytes]] = {CONFIG: config.encode, BACKBONE: lambda: _packed(self.backbone)}
        for name, state in ((HEAD, self.head), (STUDENT, self.student)):
            if state is not None:
                writers[name] = lambda state=state: _packed(state)
        if (memory := self.memory) is not None:
            writers |= {MEMORY: lambda: _packed(_memory_tensors(memory)), TABLE: lambda: pack_rows(memory)}
        return writers


def bundle_config(
    architecture: str,
    backbone: nn.Module,
    model_args: dict[str, Any],
    *,
    transform: Transform,
    head: Head | None = None,
    memory_slots: int | None = None,
    block_size: int | None = None,
    student_temperature: float | None = None,
    teacher_temperature: float | None = None,
    positions: Positions = "timm",
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of a bundle.

    Args:
        architecture: timm name; model_args, positions: what `create_backbone` got beside it.
        provenance: what the card tells: name, data, preset, steps, images_seen, knn_top1, license … plain JSON values,
            and no clock values, so that equal runs give equal bundles.
    """
    looks: dict[str, Any] = {"resize_px": int(transform.resize_px), "crop_px": int(transform.crop_px)}
    looks |= {name: getattr(transform, name) for name in ("interpolation", "crop_mode")}
    looks |= {name: [float(x) for x in getattr(transform, name)] for name in ("mean", "std")}
    built_in, any_size = dict(getattr(backbone, "pretrained_cfg", None) or {}), any_size_args(backbone)
    pretrained_cfg = {
        "tag": "memssl",
        "custom_load": False,
        "input_size": [3, looks["crop_px"], looks["crop_px"]],
        "fixed_input_size": bool(built_in.get("fixed_input_size")) and not any_size,
        "crop_pct": looks["crop_px"] / looks["resize_px"],
        **{name: looks[name] for name in ("interpolation", "mean", "std", "crop_mode")},
        "num_classes": 0,
        **{name: built_in.get(name) for name in ("pool_size", "first_conv", "classifier")},
    }
    ours = {
        "format_version": FORMAT_VERSION,
        "head": head and {name: getattr(head, name) for name in ("in_dim", "hidden_dim", "out_dim", "batch_norm")},
        "memory": memory_slots and memory_facts(memory_slots, block_size, has_head=head is not None),
        "temperatures": {"student": student_temperature, "teacher": teacher_temperature},
        "transform": looks,
        "positions": positions,
        "provenance": provenance or {},
    }
    pooling = getattr(backbone, "global_pool", "")  # a name, in convolutional models a module
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.num_features,
        "global_pool": pooling if isinstance(pooling, str) else getattr(pooling, "pool_type", ""),
        "model_args": {**model_args, "num_classes": 0, **any_size},
        "pretrained_cfg": pretrained_cfg,
        "memssl": ours,
    }


def memory_facts(slots: int, block_size: int | None, *, has_head: bool) -> dict[str, Any]:
    """What config.json tells of a memory: vectors are projections, or embeddings where there is no head."""
    return {"slots": slots, "block_size": block_size, **({} if has_head else {"space": "embedding"})}


def open_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle folder. Nothing is unpickled.

    Raises: BundleError, one sentence that names the file, if a part is missing, unreadable or does not fit the others.
    """
    folder = Path(folder).absolute()
    if not folder.exists():
        folder = folder.with_name(f".{folder.name}.before")  # a save was cut off between its two renames
    if not folder.is_dir():
        raise BundleError(f"There is no bundle folder named {folder.name.removeprefix('.').removesuffix('.before')}.")
    config = _read_config(folder)
    parts: dict[str, Any] = {"backbone": _read_tensors(folder, BACKBONE)}
    for part, name, declared in (("head", HEAD, config["memssl"].get("head")), ("student", STUDENT, None)):
        if declared or (folder / name).exists():
            parts[part] = _read_tensors(folder, name)
    if config["memssl"].get("memory") or (folder / MEMORY).exists() or (folder / TABLE).exists():
        parts["memory"] = _read_memory(folder)
    readme = (folder / CARD).read_text("utf-8", "replace") if (folder / CARD).exists() else ""
    stored_hash = _bundle_hash({name: folder / name for name in HASHED if (folder / name).exists()})
    bundle = Bundle(config=config, readme=readme, stored_hash=stored_hash, **parts)
    check_bundle(bundle)
    return bundle


def check_bundle(bundle: Bundle) -> None:
    """BundleError unless every part is complete, finite and belongs to the others."""
    with torch.device("meta"):
        backbone: Any = _make_backbone(bundle.config)
        head = _make_head(bundle.config) if bundle.config["memssl"].get("head") else None
    bundle.make_transform()
    _check_state(BACKBONE, bundle.backbone, backbone.state_dict())
    if (head is None) != (bundle.head is None):
        raise BundleError(f"{HEAD} and the head described in {CONFIG} do not come together; {_AGAIN}.")
    if head is not None and bundle.head is not None:
        if head.in_dim != embedding_width(backbone):
            raise BundleError(
                f"{HEAD} takes embeddings of width {head.in_dim} but {BACKBONE} gives {embedding_width(backbone)}; "
                "they come from different models, so export the bundle again."
            )
        _check_state(HEAD, bundle.head, head.state_dict())
    if bundle.student is not None:
        if head is None:
            raise BundleError(f"{STUDENT} needs a head described in {CONFIG}; {_AGAIN}.")
        both = {"backbone." + key: value for key, value in backbone.state_dict().items()}
        _check_state(STUDENT, bundle.student, both | {"head." + key: value for key, value in head.state_dict().items()})
    declared = bundle.config["memssl"].get("memory")
    if bool(declared) != (bundle.memory is not None):
        raise BundleError(f"{MEMORY} and the memory described in {CONFIG} do not come together; {_AGAIN}.")
    if bundle.memory is not None:
        slots = _get(declared, "slots", int)
        if slots != bundle.memory.slots:
            raise BundleError(f"{MEMORY} has {bundle.memory.slots} slots but {CONFIG} says {slots}; {_AGAIN}.")
        with _blaming(MEMORY):
            width = embedding_width(backbone)
            check_vectors(bundle.memory, head.out_dim if head else width, width)
        with _blaming(TABLE):
            check_rows(bundle.memory)


def model_hash(backbone: dict[str, Tensor], head: dict[str, Tensor] | None = None) -> str:
    """SHA-256 of the backbone's, then the head's tensors in sorted key order, as float32."""
    digest = hashlib.sha256()
    for state in (backbone, head or {}):
        for key in sorted(state):
            digest.update(state[key].detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _make_backbone(config: dict[str, Any]) -> nn.Module:
    args = {}
    for key, value in _get(config, "model_args", dict, {}).items():
        if key in _GIVEN:
            allowed = value == _GIVEN[key]
        elif key in _SIZES:
            allowed = _is_size(value, 256 if key == "depth" else 16_384) or (
                isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))
            )
        else:
            allowed = isinstance(value, bool if key in _SWITCHES else str) and key in _SWITCHES | {"global_pool"}
        if not allowed:
            raise BundleError(f"{CONFIG} asks for {key}={value!r} in model_args, which bundles may not set; remove it.")
        if key not in _GIVEN:
            args[key] = value
    positions = _get(config["memssl"], "positions", str, "timm")
    if positions not in ("timm", "original"):
        raise BundleError(f"{CONFIG} wants positions {positions!r}; this program knows timm and original.")
    try:
        return create_backbone(_get(config, "architecture", str), positions=positions, **args)
    except (ModelError, RuntimeError, ZeroDivisionError) as reason:
        why = str(reason) if isinstance(reason, ModelError) else f"the sizes in model_args do not fit; {_AGAIN}."
        raise BundleError(f"{CONFIG} describes no model that can be built: {why}") from reason


def _is_size(value: object, limit: int = 16_384) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 <= value <= limit)


def _make_head(config: dict[str, Any]) -> Head:
    sizes = _get(config["memssl"], "head", dict)
    widths = [_get(sizes, name, int) for name in ("in_dim", "hidden_dim", "out_dim")]
    if not all(1 <= width <= 65_536 for width in widths):
        raise BundleError(f"{CONFIG} gives the head the widths {widths}; they must lie between 1 and 65536.")
    return Head(*widths, batch_norm=_get(sizes, "batch_norm", bool, False))


def _loaded(make: Callable[[dict[str, Any]], Any], config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    with torch.random.fork_rng(devices=[]):  # the first, random weights are not drawn from the caller's generator
        module = make(config)
    module.load_state_dict(state)
    return module.requires_grad_(False).eval()


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _get(section: Any, key: str, kind: type, default: Any = None) -> Any:
    value = section.get(key, default) if isinstance(section, dict) else default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{CONFIG} has no usable {key!r} ({value!r}); {_AGAIN}.")
    return value


def _check_state(name: str, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for what, keys in (("lacks", expected.keys() - state.keys()), ("has a surplus", state.keys() - expected.keys())):
        if keys:
            raise BundleError(f"{name} {what} tensor {min(keys)!r} ({len(keys)} in all); {_AGAIN}.")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{list(tensor.shape)} where {CONFIG} means {list(expected[key].shape)}"
            raise BundleError(f"{name} has tensor {key!r} of shape {shapes}; the files come from different models.")
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise BundleError(f"{name} has tensor {key!r} of type {tensor.dtype}; save it as float16 or float32.")
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{name} has values that are not finite in tensor {key!r}; {_AGAIN}.")


def _packed(state: dict[str, Tensor]) -> bytes:
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()  # some models (CoaT) use a tensor under several names; the file holds each of them
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        tensors[key] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    return safetensors.torch.save(tensors, {"format": "pt"})


def _memory_tensors(memory: MemoryTable) -> dict[str, Tensor]:
    tensors = {"vectors": torch.from_numpy(memory.vectors).half()}
    tensors |= {name: torch.tensor(getattr(memory, name)) for name in ("cursor", "written")}
    if memory.embeddings is not None:
        tensors["embeddings"] = torch.from_numpy(memory.embeddings).half()
    return tensors


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise BundleError(f"{folder.name} has no {CONFIG}, so it is no bundle; choose the folder that holds {CONFIG}.")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as reason:
        raise BundleError(f"{CONFIG} is not a readable JSON file; {_AGAIN}.") from reason
    if not isinstance(config, dict) or not isinstance(config.get("memssl"), dict):
        raise BundleError(f'{CONFIG} has no section "memssl", so this is a plain timm model and no bundle.')
    version = _get(config["memssl"], "format_version", int)
    if version != FORMAT_VERSION:
        raise BundleError(f"{CONFIG} has format version {version}, this program reads {FORMAT_VERSION}; update memssl.")
    return config


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    if not (folder / name).is_file():
        raise BundleError(f"{name} is missing; {_AGAIN}.")
    try:
        return safetensors.torch.load_file(folder / name)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as reason:
        raise BundleError(f"{name} is not a readable safetensors file; {_AGAIN}.") from reason


def _read_memory(folder: Path) -> MemoryTable:
    tensors = _read_tensors(folder, MEMORY)
    expected = {"vectors": (2, torch.float16), "cursor": (0, torch.int64), "written": (0, torch.int64)}
    expected |= {"embeddings": (2, torch.float16)} if "embeddings" in tensors else {}
    if {key: (value.ndim, value.dtype) for key, value in tensors.items()} != expected:
        found = ", ".join(f"{key} {list(value.shape)} {value.dtype}" for key, value in sorted(tensors.items()))
        raise BundleError(f"{MEMORY} holds {found or 'nothing'} instead of float16 vectors, cursor, written; {_AGAIN}.")
    if not (folder / TABLE).is_file():
        raise BundleError(f"{TABLE} is missing; {_AGAIN}.")
    vectors = tensors["vectors"].numpy().astype(np.float32)
    with _blaming(MEMORY):
        check_unit_rows(vectors)
    with _blaming(TABLE):
        rows = read_rows(folder / TABLE, len(vectors))
    return MemoryTable(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        cursor=int(tensors["cursor"]),
        written=int(tensors["written"]),
        embeddings=tensors["embeddings"].numpy().astype(np.float32) if "embeddings" in tensors else None,
        **rows,
    )


@contextmanager
def _blaming(name: str):
    try:
        yield
    except ValueError as reason:
        raise BundleError(f"{name} {reason}; {_AGAIN}.") from reason


def _bundle_hash(files: dict[str, bytes | Path]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def _is_bundle(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        return not any(folder.iterdir()) or bool(_read_config(folder))
    except BundleError:
        return False


def _restore(folder: Path, before: Path) -> None:
    """Undo a save that was cut off between its two renames; drop what a finished one left behind."""
    if not folder.exists() and before.exists():
        before.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

"""The one door for models: a source string in, an opened model out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from memssl_core import paths
from memssl_core.bundle import hub
from memssl_core.bundle.card import card as bundle_card
from memssl_core.bundle.layout import CONFIG, Bundle, bundle_config, memory_facts, model_hash, open_bundle
from memssl_core.bundle.plain import plain_bundle, timm_files, timm_looks, timm_transform
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Transform
from memssl_core.errors import MemsslError, ModelError
from memssl_core.jobs import Emit
from memssl_core.model.backbone import create_backbone, embedding_width
from memssl_core.model.features import (
    FACETS,
    TOKEN_FAMILIES,
    has_class_token,
    n_layers,
    n_prefix,
    patch_px,
    why_no_attention,
)
from memssl_core.model.head import Head
from memssl_core.model.pair import Network
from memssl_core.training.runs import checkpoint_bundle, run_weights

MAX_RANDOM_PARAMETERS = 100_000_000
FORMS = (
    "embedded, bundle:FOLDER, the path of a bundle folder, hub:OWNER/NAME[@REVISION], timm:NAME, "
    "random:TIMM_NAME[@SEED], run:NAME[@STEP]"
)


@dataclass(frozen=True, eq=False)
class Model:
    """An opened model: float32, eval mode, on the CPU."""

    name: str
    source: str
    backbone: nn.Module
    """the timm module itself, taking any picture size that its family can"""
    head: Head | None
    memory: MemoryTable | None
    student: Network | None
    card: dict[str, Any] = field(repr=False)
    """plain JSON values for the page: see `_card`"""
    model_hash: str
    transform: Transform
    """the way in for embeddings and projections"""
    config: dict[str, Any] = field(repr=False)
    """config.json of a bundle of this model without its memory"""

    @property
    def nbytes(self) -> int:
        """Bytes of main memory held, about."""
        modules = [module for module in (self.backbone, self.head, self.student) if module is not None]
        weights = sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))
        return weights + (self.memory.nbytes if self.memory else 0)

    def as_bundle(
        self, memory: MemoryTable | None = None, *, provenance: dict[str, Any] | None = None, readme: str = ""
    ) -> Bundle:
        """This model as a bundle, with `memory` in place of its own.

        Args: provenance, facts added to those of the model; readme, the card (made from the config if empty).
        """
        ours = self.config["memssl"]
        ours = {**ours, "provenance": {**(ours.get("provenance") or {}), **(provenance or {})}}
        if memory is not None:
            block_size = self.card["block_size"]
            fits = block_size is not None and block_size <= memory.slots
            ours["memory"] = memory_facts(memory.slots, block_size if fits else None, has_head=self.head is not None)
        config = {**self.config, "memssl": ours}
        return Bundle(
            config=config,
            backbone=_smallest(self.backbone),
            head=_smallest(self.head) if self.head else None,
            student=_smallest(self.student) if self.student else None,
            memory=memory,
            readme=readme or bundle_card(config),
        )


def open_model(source: str) -> Model:
    """Open a model.

    source:
        `embedded`: the model that comes with the program.
        `bundle:FOLDER`, or the path of a folder: a bundle, or a plain timm model saved there (no memory).
        `hub:OWNER/NAME[@REVISION]`: the same from the Hub or its cache.
        `timm:NAME`: timm's pretrained weights by timm's name, `vit_small_patch16_224.dino`; without the part after the
            dot timm's default ones.
        `random:NAME[@SEED]`: a timm model with random weights, the same ones for the same seed (default 0).
        `run:NAME[@STEP]`: a training run below `paths.runs_dir()`, or the path of its folder: the finished bundle, or
            teacher and memory of the newest or the given checkpoint.
    Raises: a MemsslError; a ModelError for a source of another form or a name timm does not know.
    """
    kind, _, rest = source.partition(":")
    if kind in _OPENERS and rest:
        return _OPENERS[kind](source, rest)
    return _from_folder(source, _folder(source))


def source_state(source: str) -> Hashable:
    """Changes when what the source names was replaced: what a cache of opened models compares. Asks no network."""
    kind, _, rest = source.partition(":")
    try:
        if kind == "hub":
            folder = hub.cached_repo(*_repo_and_revision(rest))
            return folder and folder.name
        if kind in ("timm", "random"):
            return None
        stat = (run_weights(rest) if kind == "run" else _folder(source)).stat()
    except (OSError, MemsslError):
        return None
    return stat.st_ino, stat.st_mtime_ns


def fetch(source: str, *, emit: Emit | None = None, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Bring what a `hub:` or `timm:` source needs into the Hub's cache, going on where an earlier try was stopped.

    Tells `emit("progress", step=bytes, total=bytes, words=…)`. Other sources need nothing. Raises: HubError.
    """
    kind, _, rest = source.partition(":")
    if kind == "hub":
        hub.fetch_repo(*_repo_and_revision(rest), emit=emit, should_stop=should_stop)
    elif kind == "timm":
        hub.fetch_file(*timm_files(rest), source=source, emit=emit, should_stop=should_stop)


def is_cached(source: str) -> bool:
    """Whether the source can be opened without a network."""
    kind, _, rest = source.partition(":")
    try:
        if kind == "hub":
            return hub.cached_repo(*_repo_and_revision(rest)) is not None
        return kind != "timm" or hub.cached_file(*timm_files(rest)) is not None
    except MemsslError:
        return False


# What a source leads to


def _folder(source: str) -> Path:
    if source == "embedded":
        if not (folder := paths.embedded_bundle()).is_dir():
            raise ModelError("This copy of the program lacks its embedded model; give another source with --model.")
        return folder
    prefix, colon, rest = source.partition(":")
    if prefix == "bundle" and rest:
        return Path(rest).expanduser()
    if source and Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    kind = "is no kind of model source" if colon or not source else "is no folder"
    raise ModelError(f"{source.rpartition('/')[2]!r} {kind}; give one of: {FORMS}.")


def _from_folder(source: str, folder: Path, **origin: str) -> Model:
    """A bundle or a plain timm model; `origin` tells where the folder came from."""
    is_plain = (folder / CONFIG).is_file() and "memssl" not in hub.read_config(folder)
    bundle = plain_bundle(folder) if is_plain else open_bundle(folder)
    return _from_bundle(source, origin.get("repository") or folder.resolve().name, bundle, origin)


def _from_hub(source: str, rest: str) -> Model:
    repo, revision = _repo_and_revision(rest)
    folder = hub.fetch_repo(repo, revision)
    return _from_folder(source, folder, repository=repo, revision=folder.name)


def _repo_and_revision(rest: str) -> tuple[str, str | None]:
    repo, _, revision = rest.partition("@")
    hub.check_names(repo, revision or None)
    return repo, revision or None


def _from_run(source: str, rest: str) -> Model:
    weights = run_weights(rest)
    if weights.is_dir():  # its bundle, which does not know what the run is called
        model, name = _from_folder(source, weights), weights.parent.name
        return replace(model, name=name, card={**model.card, "name": name})
    return _from_bundle(source, weights.stem, checkpoint_bundle(weights), {})


def _from_timm(source: str, name: str) -> Model:
    repo, files = timm_files(name)
    path = hub.fetch_file(repo, files, source=source)
    try:
        with torch.random.fork_rng(devices=[]):
            overlay = {"file": str(path), "custom_load": False}  # no format but safetensors
            backbone = create_backbone(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (SafetensorError, RuntimeError, LookupError, OSError) as reason:
        raise ModelError(
            f"The cached weights of {name} are not what this version of timm expects; update timm."
        ) from reason
    looks = timm_looks(name)
    title = name if "." in name else f"{name}.{looks.tag}"
    facts = {"name": title, "repository": repo, "revision": path.parent.name}
    return _from_timm_module(source, name, backbone, facts | ({"license": looks.license} if looks.license else {}))


def _from_random(source: str, rest: str) -> Model:
    name, _, seed = rest.partition("@")
    if not (seed or "0").isdecimal() or len(seed) > 18:
        raise ModelError(f"{seed!r} is no seed; write a whole number, for example random:{name}@3.")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in create_backbone(name).parameters())
    if size > MAX_RANDOM_PARAMETERS:
        raise ModelError(
            f"{name} has {size / 1e6:.0f} million parameters; random models are for trying out small ones."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        backbone = create_backbone(name)
    return _from_timm_module(source, name, backbone, {"name": f"{name}, random weights (seed {int(seed or 0)})"})


def _from_timm_module(source: str, name: str, backbone: Any, facts: dict[str, Any]) -> Model:
    transform = timm_transform(backbone.pretrained_cfg)
    img_size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    args = {"img_size": list(img_size)} if img_size else {}
    config = bundle_config(name.partition(".")[0], backbone, args, transform=transform, provenance=facts)
    return _model(facts["name"], source, config, transform, backbone.requires_grad_(False).eval())


def _from_bundle(source: str, name: str, bundle: Bundle, origin: dict[str, str]) -> Model:
    ours = bundle.config["memssl"]
    told = {**(ours.get("provenance") or {}), **origin}
    config = {**bundle.config, "memssl": {**ours, "memory": None, "provenance": told}}
    parts = bundle.make_backbone(), bundle.make_head(), bundle.make_student()
    return _model(str(told.get("name") or name), source, config, bundle.make_transform(), *parts, bundle=bundle)


def _model(
    name: str,
    source: str,
    config: dict[str, Any],
    transform: Transform,
    backbone: nn.Module,
    head: Head | None = None,
    student: tuple[nn.Module, Head] | None = None,
    *,
    bundle: Bundle | None = None,
) -> Model:
    digest = bundle.model_hash if bundle else model_hash(backbone.state_dict())
    return Model(
        name=name,
        source=source,
        backbone=backbone,
        head=head,
        memory=bundle.memory if bundle else None,
        student=Network(*student).eval() if student else None,
        card=_card(name, config, transform, backbone, digest, bundle),
        model_hash=digest,
        transform=transform,
        config=config,
    )


_OPENERS: dict[str, Callable[[str, str], Model]] = {
    "hub": _from_hub,
    "timm": _from_timm,
    "random": _from_random,
    "run": _from_run,
}


def _card(
    name: str, config: dict[str, Any], transform: Transform, backbone: Any, digest: str, bundle: Bundle | None
) -> dict[str, Any]:
    memory = bundle.memory if bundle else None
    ours = config["memssl"]
    told = ours.get("provenance") or {}
    has_tokens, why = isinstance(backbone, TOKEN_FAMILIES), why_no_attention(backbone)
    blocks = backbone.blocks if has_tokens else []
    return {
        "name": name,
        "architecture": config["architecture"],
        "family": "tokens" if has_tokens else "map",
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "embedding_width": embedding_width(backbone),
        "input_px": transform.crop_px,
        "resize_px": transform.resize_px,
        "patch_px": patch_px(backbone),
        "positions": ours.get("positions") or "timm",
        "blocks": len(blocks),
        "layers": n_layers(backbone),
        "facets": ["token"] if why else list(FACETS),
        "attention_heads": blocks[0].attn.num_heads if len(blocks) and not why else 0,
        "class_token": has_class_token(backbone),
        "prefix_tokens": n_prefix(backbone),
        "why_no_attention": why,
        "projection_width": ours["head"]["out_dim"] if ours.get("head") else None,
        "memory_slots": memory.slots if memory else 0,
        "memory_filled": int((memory.image_id != -1).sum()) if memory else 0,
        "memory_images": len({*memory.image_id[memory.image_id >= 0].tolist()}) if memory else 0,
        "has_embeddings": memory is not None and (memory.embeddings is not None or not ours.get("head")),
        "has_student": bundle is not None and bundle.student is not None,
        "temperatures": ours.get("temperatures") if bundle else None,
        "block_size": (bundle.config["memssl"].get("memory") or {}).get("block_size") if bundle else None,
        "data": told.get("data"),
        "license": told.get("license"),
        "repository": told.get("repository"),
        "revision": told.get("revision"),
        "figures": {key: value for key, value in told.items() if isinstance(value, (int, float))},
        "provenance": told,
        "readme": bundle.readme if bundle else "",
        "model_hash": digest,
        "bundle_hash": bundle.bundle_hash if bundle else None,
    }


def _smallest(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors: as float16 if that loses nothing in any of them, as they were stored."""
    state = {key: value.detach() for key, value in module.state_dict().items()}
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    return halves if all(torch.equal(halves[key].to(state[key].dtype), state[key]) for key in state) else state

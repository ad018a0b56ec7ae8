"""What can be opened: the models that are here, and a short list of those worth fetching. Opens none of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from memssl_core import paths
from memssl_core.bundle import hub
from memssl_core.errors import HubError
from memssl_core.jobs import JobFolder

Group = Literal["embedded", "runs", "bundles", "cached", "curated"]


@dataclass(frozen=True)
class Entry:
    """A model in the picker. None: unknown without opening or fetching it."""

    source: str
    title: str
    group: Group
    parameters: int | None
    """of the backbone"""
    nbytes: int | None
    """on disk, or to fetch"""
    licence: str | None
    cached: bool
    """can be opened without a network"""
    note: str


# timm name, parameters of the backbone, of the classifier stored with it, licence, note. Counts and licences are timm's
# own (a test compares); a file holds 4 bytes a parameter.
_CURATED = (
    ("vit_small_patch16_224.dino", 21_665_664, 0, "apache-2.0", "DINO, self-supervised"),
    ("vit_small_patch8_224.dino", 21_670_272, 0, "apache-2.0", "DINO, self-supervised, small patches: slow and sharp"),
    ("vit_base_patch16_224.dino", 85_798_656, 0, "apache-2.0", "DINO, self-supervised"),
    ("vit_small_patch14_dinov2.lvd142m", 22_056_192, 0, "apache-2.0", "DINOv2, self-supervised"),
    ("vit_small_patch14_reg4_dinov2.lvd142m", 22_057_344, 0, "apache-2.0", "DINOv2 with registers"),
    ("vit_base_patch14_dinov2.lvd142m", 86_579_712, 0, "apache-2.0", "DINOv2, self-supervised"),
    ("vit_base_patch14_reg4_dinov2.lvd142m", 86_582_016, 0, "apache-2.0", "DINOv2 with registers"),
    ("vit_small_patch16_dinov3.lvd1689m", 21_586_944, 0, "dinov3-license", "DINOv3; read its licence first"),
    ("vit_base_patch16_224.mae", 85_798_656, 0, "cc-by-nc-4.0", "MAE, self-supervised; not for commercial use"),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", 21_665_664, 385_000, "apache-2.0", "supervised, ImageNet-21k"),
    ("resnet50.a1_in1k", 23_508_032, 2_049_000, "apache-2.0", "supervised, convolutional: a feature map"),
    ("resnet18.a1_in1k", 11_176_512, 513_000, "apache-2.0", "supervised, convolutional: a feature map"),
)


def catalogue(*, runs: Path, bundles: Path) -> list[Entry]:
    """The embedded model, training runs (newest first), bundles made here, cached Hub models, and the curated list.

    Needs no network and reads no weights. Folders that are no model, or a broken one, are left out.
    """
    cached = dict(hub.cached_repos())
    curated = [_curated(*row, cached) for row in _CURATED]
    listed = {entry.source for entry in curated}
    others = [entry for repo, nbytes in cached.items() if (entry := _cached(repo, nbytes)).source not in listed]
    embedded = _entry("embedded", paths.embedded_bundle(), "embedded", "comes with the program")
    stored = (_entry(f"bundle:{path}", path, "bundles", "") for path in _folders(bundles))
    return [
        *([embedded] if embedded else []),
        *(entry for path in sorted(_folders(runs), key=_age) if (entry := _run(path, runs))),
        *filter(None, stored),
        *others,
        *curated,
    ]


def _curated(name: str, parameters: int, classifier: int, licence: str, note: str, cached: dict[str, int]) -> Entry:
    nbytes = 4 * (parameters + classifier)
    return Entry(f"timm:{name}", name, "curated", parameters, nbytes, licence, f"timm/{name}" in cached, note)


def _cached(repo: str, nbytes: int) -> Entry:
    folder = hub.cached_repo(repo)
    if repo.startswith("timm/"):  # whose repositories are named as timm's weights are
        name = repo.removeprefix("timm/")
        return Entry(f"timm:{name}", name, "cached", None, nbytes, None, True, "from the Hub")
    entry = _entry(f"hub:{repo}", folder, "cached", "from the Hub") if folder else None
    return entry or Entry(f"hub:{repo}", repo, "cached", None, nbytes, None, True, "from the Hub")


def _run(folder: Path, runs: Path) -> Entry | None:
    is_usual = runs.absolute() == paths.runs_dir().absolute()
    source = f"run:{folder.name if is_usual else folder.absolute()}"
    status = JobFolder(folder).status() or {}
    step, steps = status.get("step"), status.get("steps")
    done = f"step {step:,} of {steps:,}" if isinstance(step, int) and isinstance(steps, int) else ""
    note = ", ".join(filter(None, (str(status.get("state", "")), done)))
    if (bundle := _entry(source, folder / "bundle", "runs", note, title=folder.name)) is not None:
        return bundle
    kept = sorted(folder.glob("checkpoints/step-????????.pt"))
    return Entry(source, folder.name, "runs", None, kept[-1].stat().st_size, None, True, note) if kept else None


def _entry(source: str, folder: Path, group: Group, note: str, *, title: str = "") -> Entry | None:
    """What config.json and the header of the weights tell of a bundle or a plain timm model."""
    try:
        config = hub.read_config(folder)
        parameters = _parameters(folder)
    except (HubError, OSError, SafetensorError, StopIteration):
        return None
    ours, looks = _section(config, "memssl"), _section(config, "pretrained_cfg")
    if not ours and not isinstance(config.get("architecture"), str):
        return None
    told, memory = _section(ours, "provenance"), _section(ours, "memory")
    slots = memory.get("slots")
    note = ", ".join(filter(None, (note, f"{slots:,} slots" if isinstance(slots, int) else "no memory")))
    licence = told.get("license") or looks.get("license")
    nbytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    name = title or str(told.get("name") or source.partition(":")[2].rpartition("/")[2])
    return Entry(source, name, group, parameters, nbytes, str(licence) if licence else None, True, note)


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _parameters(folder: Path) -> int:
    """Values in the file of weights, told by its header."""
    path = next(folder / name for name in hub.WEIGHTS if (folder / name).is_file())
    with safe_open(path, framework="numpy") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _age(folder: Path) -> float:
    try:
        return -folder.stat().st_mtime
    except OSError:
        return 0.0

"""The model card of a bundle, README.md: front matter for the Hub, then what a person wants to know."""

from __future__ import annotations

import json
from typing import Any

from memssl_core.bundle.maps import MAP_FIGURES

_HEAD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- memssl
{tags}{license}---
# {name}

{made}{memory_sentence}

| | |
|---|---|
{table}

## Load it

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:OWNER/NAME"; embeddings [B, {width}]
```

{with_memory}: `memssl_core.open_model("bundle:FOLDER")`.
{figures}
## Limits

- Attention is not an explanation: a map shows where an attention head read, not why the model answered as it did.
- What it has not seen in training it may confuse. Try it on your own pictures before you rely on it.
- Thumbnails and names of remembered pictures are part of this folder; share it only if you may share them.
"""


_TRAINED_HERE = """\
An image backbone trained without labels by comparing what it sees with what it remembers (MaSSL, Silva et al.,
ICML 2024)."""
_OURS = "- massl\n- self-supervised-learning\n"


def card(config: dict[str, Any], *, hours: float | None = None) -> str:
    """README.md for a bundle with this config.json (see `bundle_config`).

    `hours` is the training time; it is told here and not in config.json, so that equal runs have equal hashes.
    """
    ours = config["memssl"]
    told, head, memory = ours.get("provenance") or {}, ours.get("head"), ours.get("memory")
    is_massl = "steps" in told or str(told.get("family")).startswith("massl")
    looks, temperatures = ours["transform"], ours.get("temperatures") or {}
    trained = [f"{told['steps']:,} steps" if "steps" in told else ""]
    trained += [f"{told['images_seen']:,} pictures seen" if "images_seen" in told else ""]
    if hours is not None:
        trained += [f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"]
    sizes = {key: value for key, value in config.get("model_args", {}).items() if key not in ("num_classes",)}
    lines = {
        "backbone": f"`{config['architecture']}` {_words(sizes)}",
        "embedding": f"width {config['num_features']}",
        "projection": head and f"width {head['out_dim']}, hidden {head['hidden_dim']}",
        "memory": memory and _memory(memory, told.get("memory_data")),
        "temperatures": _words({key: value for key, value in temperatures.items() if value is not None}),
        "picture": f"short side to {looks['resize_px']} px ({looks['interpolation']}), centre {looks['crop_px']} px",
        "weights": told.get("repository") and f"`{told['repository']}`",
        "data": told.get("data") and f"`{told['data']}`",
        "preset": told.get("preset"),
        "training": ", ".join(filter(None, trained)),
    }
    figures = {key: value for key, value in told.items() if isinstance(value, float)}
    license_id = told.get("license")
    return _HEAD.format(
        license=f"license: {json.dumps(license_id)}\n" if license_id else "",
        name=_line(told.get("name") or config["architecture"]),
        tags=_OURS if is_massl else "",
        made=_TRAINED_HERE if is_massl else f"An image backbone of timm's architecture `{config['architecture']}`.",
        memory_sentence=" Its memory comes with it." if memory else "",
        table="\n".join(f"| {key} | {_line(value)} |" for key, value in lines.items() if value),
        width=config["num_features"],
        with_memory="With its memory" if memory else "In the explorer",
        figures=_figures(figures),
    )


_MAP_BEGINS, _MAP_ENDS = "\n## Map\n", "\n## Limits\n"


def card_with_map(readme: str, map_parameters: dict[str, Any]) -> str:
    """The card with the figures of the bundle's map, in place of those of an earlier one (see bundle/maps.py)."""
    figures = {name: map_parameters[name] for name in MAP_FIGURES if name in map_parameters}
    before, earlier, rest = readme.partition(_MAP_BEGINS)
    if earlier:
        readme = before + "\n## " + rest.partition("\n## ")[2]
    before, _, after = readme.partition(_MAP_ENDS)
    if not figures or not after:
        return readme
    how = ", ".join(f"{name} {map_parameters.get(name)}" for name in ("method", "seed", "space"))
    rows = "\n".join(f"| {MAP_FIGURES[name]} | {value:.4g} |" for name, value in figures.items())
    return f"{before}{_MAP_BEGINS}\n| measure ({_line(how)}) | value |\n|---|---|\n{rows}\n{_MAP_ENDS}{after}"


def published_card(readme: str, repo: str) -> str:
    """The card as it stands on the Hub: it loads the model from there."""
    for here, there in (("local-dir:FOLDER", f"hf-hub:{repo}"), ("bundle:FOLDER", f"hub:{repo}")):
        readme = readme.replace(f'"{here}"', f'"{there}"')
    return readme.replace('# or "hf-hub:OWNER/NAME"; ', "# ")


def _memory(memory: dict[str, Any], data: object) -> str:
    blocks = f", compared in blocks of {memory['block_size']:,}" if memory.get("block_size") else ""
    kind = " of embeddings (it has no projection head)" if memory.get("space") == "embedding" else ""
    pictures = f", pictures of `{data}`" if data else ""
    return f"{memory['slots']:,} slots{kind}{blocks}{pictures}"


def _figures(figures: dict[str, float]) -> str:
    named = {key.replace("knn_top1", "k-NN top-1 (%)").replace("rankme", "RankMe"): figures[key] for key in figures}
    rows = "\n".join(f"| {_line(name.replace('_', ' '))} | {value:.4g} |" for name, value in named.items())
    return f"\n## Figures\n\n| measure | value |\n|---|---|\n{rows}\n" if figures else ""


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _line(value: object) -> str:
    """One line of Markdown that cannot break out of its table cell or heading."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")

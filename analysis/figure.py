"""A map as a page of its own: one file that opens anywhere, with the pictures under the pointer."""

from __future__ import annotations

import base64
import html
import json
from typing import Any

import numpy as np

from analysis.clusters import Cluster
from memssl_core.bundle.maps import MemoryMap
from memssl_core.errors import ModelError
from memssl_core.sources import Model

MAX_PICTURES = 5_000
"""slots; in the page of a larger map a point tells its words only"""
# Okabe and Ito's colours, which colour-blind people tell apart too: the largest clusters; the rest is grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_REST, _NONE = "#767C86", "#C4C9D1"

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 0; height: 100vh; display: flex; flex-direction: column; font: 14px/20px system-ui; color: #1b1f27 }}
header {{ padding: 8px 16px }} h1 {{ font-size: 16px; margin: 0 }} p {{ margin: 0; color: #566072 }}
main {{ flex: 1; min-height: 0 }}
#card {{ position: fixed; z-index: 1; display: none; max-width: 240px; padding: 8px; background: #fff;
  border: 1px solid #7c8698; border-radius: 8px; pointer-events: none; overflow-wrap: anywhere; white-space: pre-line }}
#card img {{ display: block; width: 96px; margin-bottom: 4px }}
</style>
<header><h1>{title}</h1><p>{told}</p></header>
<div id="card"><img alt=""><span></span></div>
<main>{figure}</main>
</html>
"""
_HOVER = """
const slots = %s, card = document.getElementById("card"), [picture, words] = card.children;
const plot = document.getElementById("map");
plot.on("plotly_hover", ({event, points: [{customdata: slot}]}) => {
  const [image, ...lines] = slots[slot];
  picture.hidden = !image;
  if (image) picture.src = image;
  words.textContent = lines.join("\\n");
  card.style.display = "block";
  const {width, height} = card.getBoundingClientRect();
  const beside = (at, size, room) => Math.max(0, at + 16 + size <= room ? at + 16 : at - 16 - size);
  card.style.left = beside(event.clientX, width, innerWidth) + "px";
  card.style.top = beside(event.clientY, height, innerHeight) + "px";
});
plot.on("plotly_unhover", () => { card.style.display = "none"; });
"""


def map_html(model: Model, memory_map: MemoryMap, clusters: list[Cluster]) -> str:
    """The HTML of a map that needs no network; the text of a bundle shows as text. ModelError without plotly."""
    try:
        from plotly import graph_objects
    except ImportError as reason:
        raise ModelError("A map page needs plotly; install it with `pip install plotly`.") from reason
    figure = graph_objects.Figure(layout={"template": "none", "margin": {"l": 8, "r": 8, "t": 40, "b": 8}})
    for name, colour, members in _layers(memory_map.cluster, clusters):
        x, y = memory_map.xy[members].T
        rim = {"width": 1, "color": "#1B1F27"} if colour in COLOURS else None
        figure.add_scattergl(
            x=x,
            y=y,
            customdata=memory_map.slot[members],
            mode="markers",
            name=html.escape(name),  # plotly reads tags in names
            marker={"color": colour, "size": 6, "line": rim},
            hoverinfo="none",
        )
    hidden = {"visible": False}
    figure.update_layout(xaxis=hidden, yaxis={**hidden, "scaleanchor": "x"}, dragmode="pan", hovermode="closest")
    shown = figure.to_html(
        include_plotlyjs=True,
        full_html=False,
        div_id="map",
        post_script=_HOVER % _script_literal(_slots(model, memory_map, clusters)),
        config={"scrollZoom": True, "displaylogo": False},
    )
    told = memory_map.parameters
    words = [f"{len(memory_map.slot)} slots, {told['space']} space, {told['method']}"]
    if "trustworthiness" in told:
        words.append(f"trustworthiness@15 {told['trustworthiness']:.3f}")
    words.append("who is near whom means something; distances, sizes and densities of clusters mean little")
    return _PAGE.format(title=html.escape(f"Memory of {model.name}"), told=html.escape(" · ".join(words)), figure=shown)


def _layers(cluster: np.ndarray, clusters: list[Cluster]):
    """(name, colour, rows) from the bottom to the top."""
    for name, colour, wanted in (
        ("no cluster", _NONE, cluster < 0),
        ("other clusters", _REST, cluster >= len(COLOURS)),
    ):
        if wanted.any():
            yield name, colour, np.flatnonzero(wanted)
    for one in clusters[: len(COLOURS)]:
        if one.cluster < len(COLOURS):
            yield f"{one.cluster}: {one.name}", COLOURS[one.cluster], np.flatnonzero(cluster == one.cluster)


def _slots(model: Model, memory_map: MemoryMap, clusters: list[Cluster]) -> dict[int, list[str]]:
    """For each slot its picture as a data URL, "" where there is none, and lines of words."""
    assert model.memory is not None
    names = {one.cluster: one.name for one in clusters}
    told = {}
    rows = model.memory.rows(memory_map.slot)
    for row, cluster in zip(rows, memory_map.cluster.tolist(), strict=True):
        data = model.memory.thumbnail(row["slot"]) if len(rows) <= MAX_PICTURES else b""
        kind = "jpeg" if data[:1] == b"\xff" else "webp"
        lines = [f"slot {row['slot']}, step {row['step']}", row["class_name"], row["uri"], names.get(cluster)]
        url = data and f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        told[row["slot"]] = [url or "", *(line for line in lines if line)]
    return told


def _script_literal(value: Any) -> str:
    """A value as JavaScript that can stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

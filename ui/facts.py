"""What the page must know before it can ask anything: state, pictures, the model in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ui.context import device_words
from ui.examples import examples
from ui.messages import explain

if TYPE_CHECKING:
    from analysis import Workbench
    from ui.context import Context

MAX_PATCHES = 1600  # of a square picture: keeps an answer below a second on two cores
FIGURE_NAMES = {"knn_top1": "k-NN top-1, per cent"}


def page_facts(context: Context) -> dict[str, Any]:
    """`{state, source, offline, pictures, model, device}`; with `title` and `text` when the model failed to open."""
    pictures = [{"handle": handle, "name": example.name} for handle, example in examples().items()]
    facts = {"state": context.state, "source": context.source, "offline": context.offline, "pictures": pictures}
    if facts["state"] == "failed":
        reason = context.opening.exception()
        return facts | explain(reason) if reason else facts
    if facts["state"] == "ready":
        workbench, handle = context.workbench(), context.opened().handle
        facts |= {"model": {"handle": handle, **model_facts(workbench.model.card)}, "device": _device_chip(workbench)}
    return facts


def _device_chip(workbench: Workbench) -> str:
    import torch

    threads = torch.get_num_threads()
    cpu = f", {threads} thread{'s' * (threads > 1)}" if workbench.device.type == "cpu" else ""
    return device_words(workbench) + cpu


def input_sizes(card: dict) -> list[int]:
    """Long sides in px that the page offers: one to four times the model's own, while patches stay few enough."""
    own, patch = card["input_px"], card["patch_px"]
    return [own * n for n in (1, 2, 3, 4) if n == 1 or (own * n // patch) ** 2 <= MAX_PATCHES]


def first_size(card: dict) -> int:
    """The smallest offered size with at least 14 patches a side: a coarser map hides what it shows."""
    sizes = input_sizes(card)
    return next((size for size in sizes if size // card["patch_px"] >= 14), sizes[-1])


def model_facts(card: dict) -> dict[str, Any]:
    """The model for the header, its card and the controls of the views."""
    slots, patch = card["memory_slots"], card["patch_px"]
    facts = [
        ("Architecture", card["architecture"]),
        ("Parameters", card["parameters"]),
        ("Transformer blocks · heads", f"{card['blocks']} · {card['attention_heads']}"),
        ("Patch · input", f"{patch} px · {card['input_px']} px"),
        ("Embedding · projection", f"{card['embedding_width']} · {card['projection_width'] or 'none'}"),
        ("Training data", card["data"] or "none told"),
        ("Memory", memory_words(card)),
        *[
            (FIGURE_NAMES.get(name) or name.replace("_", " ").capitalize(), figure(value))
            for name, value in card["figures"].items()
        ],
        ("Licence", card["license"] or "none told"),
    ]
    hashes = [("Model", card["model_hash"]), ("Bundle", card["bundle_hash"] or "no bundle")]
    return {
        "name": card["name"],
        "line": f"{card['blocks']} blocks, patch {patch}" + (f" · {grouped(slots)} slots" if slots else ""),
        "architecture": card["architecture"],
        "facts": facts,
        "hashes": hashes,
        "no_attention": card["why_no_attention"],
        "whole": ["cls", "class token"] if card["class_token"] else ["mean", "mean over patches"],
        "sizes": [(size, f"{size} px · {size // patch}×{size // patch} patches") for size in input_sizes(card)],
        "size": first_size(card),
        "memory": {"slots": slots, "embeddings": card["has_embeddings"]} if slots else None,
    }


def memory_words(card: dict) -> str:
    if not card["memory_slots"]:
        return "none"
    return f"{grouped(card['memory_filled'])} of {grouped(card['memory_slots'])} slots filled"


def grouped(number: int) -> str:
    """131072 -> '131 072', with thin spaces."""
    return f"{number:,}".replace(",", "\u2009")


def figure_name(name: str) -> str:
    return FIGURE_NAMES.get(name) or name.replace("_", " ").capitalize()


def figure(value: float) -> str:
    return grouped(value) if isinstance(value, int) else f"{value:.4g}"

"""What the page must know before it can ask anything: state, pictures, the model in words."""

from __future__ import annotations

from contextlib import suppress
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memssl_core import paths
from memssl_core.errors import RunError
from ui.context import device_words, told
from ui.examples import PAIR, examples
from ui.messages import explain
from ui.runs import banner, give_way

if TYPE_CHECKING:
    from analysis import Workbench
    from ui.context import Context

MAX_PATCHES = 1600  # of a square picture: keeps an answer below a second on two cores
MOST_PATCHES, STEP_PATCHES = 64, 4  # along a side, where one chooses to wait longer; 4096 of a square picture
FIGURE_NAMES = {
    "knn_top1": "k-NN top-1, per cent",
    "knn_top1_untrained": "k-NN top-1 before training",
    "rankme": "RankMe",
    "rankme_untrained": "RankMe before training",
}
NOT_OFFERED = "This server offers no training to its visitors; on a machine of your own the explorer has a Train tab."
POSITIONS = {"timm": "resized as timm does", "original": "resized as the original does"}


def page_facts(context: Context) -> dict[str, Any]:
    """`{state, source, offline, public, roots, training, training_words, banner, pictures, pair, model, device}`.

    When opening failed, `title` and `text` say why.
    """
    give_way(context)
    facts = {
        "state": context.state,
        "source": context.source,
        "offline": context.offline,
        "public": context.public,
        "roots": list(context.roots),
        "training": context.training is not None,
        "training_words": "" if context.training else NOT_OFFERED,
        "banner": banner(context),
        "pictures": [{"handle": handle, "name": example.name} for handle, example in examples().items()],
        "pair": PAIR if set(PAIR) <= set(examples()) else list(examples())[:2],
    }
    if facts["state"] == "failed":
        reason = context.opening.exception()
        return facts | explain(reason) if reason else facts
    if facts["state"] == "ready":
        facts |= {
            "model": model_facts(context, context.opened().handle),
            "device": _device_chip(context.workbench()),
        }
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


def attention_sizes(card: dict) -> list[tuple[int, int, float]]:
    """(long side in px, patches along it, work relative to `first_size`), rising; none for a model without attention.

    From the model's own size in steps of whole patches to `MOST_PATCHES` of a square picture, or to where the tokens of
    all transformer blocks are no longer kept from one click to the next; with all `input_sizes`.
    The work is the multiply-adds of a transformer block on N tokens of width C: 12 N C² in its linear layers, when its
    MLP is four times as wide, and 2 N² C in its attention.
    """
    if card["why_no_attention"]:
        return []
    from analysis.tokens import CACHE_BYTES, MAX_INPUT_PIXELS

    patch, width = card["patch_px"], card["embedding_width"]
    own = card["input_px"] // patch
    kept = isqrt(CACHE_BYTES // (8 * width * (card["blocks"] + 1)))
    most = min(MOST_PATCHES, isqrt(MAX_INPUT_PIXELS) // patch, kept)
    sides = {*range(own, most + 1, STEP_PATCHES), *([most] if most > own else [])}
    offered = {side * patch: side for side in sides} | {px: px // patch for px in input_sizes(card)}

    def work(side: int) -> float:
        tokens = side**2 + card["prefix_tokens"]
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    usual = work(first_size(card) // patch)
    return [(px, side, round(work(side) / usual, 3)) for px, side in sorted(offered.items())]


def can_read(card: dict, size: int) -> bool:
    """Whether maps are given at this long side in px: one of `attention_sizes`, or whole patches between them."""
    sizes = [px for px, _, _ in attention_sizes(card)]
    return size in sizes or (sizes[0] < size < sizes[-1] and size % card["patch_px"] == 0)


def prefix_tokens(card: dict) -> list[str]:
    """The queries that name the tokens before the patches, in order."""
    registers = card["prefix_tokens"] - card["class_token"]
    return ["cls"] * card["class_token"] + [f"register:{i}" for i in range(registers)]


def first_size(card: dict) -> int:
    """The smallest offered size with at least 14 patches a side: a coarser map hides what it shows."""
    sizes = input_sizes(card)
    return next((size for size in sizes if size // card["patch_px"] >= 14), sizes[-1])


def model_facts(context: Context, handle: str) -> dict[str, Any]:
    """The model behind a handle, for the header, its card and the controls of the views."""
    workbench = context.workbench(handle)
    model = workbench.model
    source = told(context, model.source)
    facts = card_facts(model.card)
    if words := map_words(context.layouts.figures(model)):
        facts["facts"].append(("Map of the memory", words))
    if source != model.source and source.startswith("bundle:"):  # known by the name it was given here
        facts |= {"name": source.removeprefix("bundle:"), "facts": [("Model", facts["name"]), *facts["facts"]]}
    kind, _, rest = source.partition(":")
    if kind == "run" and "@" in rest:  # a checkpoint, whose own name is its step
        facts["name"] = rest
    return {
        "handle": handle,
        "source": source,
        "typed": source if context.public else model.source,
        "publishable": not context.public and bundle_folder(model.source) is not None,
        "match": dict(zip(("facet", "layer"), workbench.match_default, strict=True)),
        **facts,
    }


def map_words(figures: dict[str, Any]) -> str:
    """How truly a map shows who is near whom; "" where that is not known."""
    if not {"trustworthiness", "trustworthiness_pca"} <= figures.keys():
        return ""
    found, plain = (figures[f"trustworthiness{of}"] for of in ("", "_pca"))
    return f"trustworthiness@15 {found:.3f}, of the first two principal components {plain:.3f}"


def bundle_folder(source: str) -> Path | None:
    """The folder of a bundle on this machine, also that of a run; None for other sources."""
    kind, _, rest = source.partition(":")
    if source == "embedded":
        return paths.embedded_bundle()
    if kind == "run":
        from memssl_core.training.runs import run_weights

        with suppress(RunError):
            return folder if (folder := run_weights(rest)).is_dir() else None
        return None
    return Path(rest).expanduser() if kind == "bundle" else None


def card_facts(card: dict) -> dict[str, Any]:
    """What a model's card tells the page."""
    slots, patch = card["memory_slots"], card["patch_px"]
    tokens, width = card["family"] == "tokens", card["projection_width"]
    facts = [
        ("Architecture", card["architecture"]),
        ("Family", family(card)),
        ("Parameters", card["parameters"]),
        ("Transformer blocks · heads", tokens and f"{card['blocks']} · {card['attention_heads'] or 'not shown'}"),
        ("Patch · input" if tokens else "Cell · input", f"{patch} px · {card['input_px']} px"),
        ("Positions", tokens and POSITIONS[card["positions"]]),
        ("Embedding · projection", f"{card['embedding_width']} · {width or 'none'}"),
        ("Training data", card["data"] or "none told"),
        ("Memory", memory_words(card)),
        *[
            (FIGURE_NAMES.get(name) or name.replace("_", " ").capitalize(), figure(value))
            for name, value in card["figures"].items()
        ],
        ("Licence", card["license"] or "none told"),
        ("Repository", card["repository"]),
    ]
    return {
        "name": card["name"],
        "line": " · ".join([shape(card), *([f"{grouped(slots)} slots"] if slots else [])]),
        "architecture": card["architecture"],
        "facts": [(name, value) for name, value in facts if value],
        "hashes": [("Model", card["model_hash"]), ("Bundle", card["bundle_hash"] or "no bundle")],
        "no_attention": card["why_no_attention"],
        "can": can(card),
        "whole": ["cls", "class token"] if card["class_token"] else ["mean", "mean over patches"],
        "sizes": [(size, f"{size} px · {size // patch}×{size // patch} patches") for size in input_sizes(card)],
        "size": first_size(card),
        "attention_sizes": attention_sizes(card),
        "prefix_tokens": prefix_tokens(card),
        "blocks": card["blocks"],
        "heads": card["attention_heads"],
        "layers": card["layers"],
        "layer_noun": "block" if tokens else "stage",
        "facets": card["facets"],
        "memory": {"slots": slots, "spaces": spaces(card)} if slots else None,
    }


def family(card: dict) -> str:
    """In words what kind of model it is."""
    if card["family"] == "map":
        return "feature map, no patches"
    registers = card["prefix_tokens"] - card["class_token"]
    kind = "vision transformer" + ("" if card["class_token"] else " without class token")
    return kind + (f", {registers} register token{'s' * (registers > 1)}" if registers > 0 else "")


def shape(card: dict) -> str:
    if card["family"] == "map":
        return f"feature map, cells of {card['patch_px']} px"
    return f"{card['blocks']} blocks, patch {card['patch_px']}"


def can(card: dict) -> str:
    """What a model without attention still answers."""
    side = card["input_px"] // card["patch_px"]
    return (
        f"It gives a picture a feature map of {side}×{side} cells and an embedding of "
        f"{grouped(card['embedding_width'])} numbers, which finds pictures in a memory."
    )


def spaces(card: dict) -> list[str]:
    """The spaces in which a memory can be searched: projections if there is a head, embeddings if they are kept."""
    return ["memory"] * bool(card["projection_width"]) + ["embedding"] * card["has_embeddings"]


def memory_words(card: dict) -> str:
    if not card["memory_slots"]:
        return "none"
    kept = " of embeddings" if spaces(card) == ["embedding"] else ""
    return f"{grouped(card['memory_filled'])} of {grouped(card['memory_slots'])} slots{kept} filled"


def grouped(number: int) -> str:
    """131072 -> '131 072', with thin spaces."""
    return f"{number:,}".replace(",", "\u2009")


def figure(value: float) -> str:
    return grouped(value) if isinstance(value, int) else f"{value:.4g}"

"""The verbs `attention`, `heads` and `pca`: where a model looks, which attention heads matter, what its patches are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from analysis.terminal import PICTURES, Picture, Source, check_out, print_json, workbench_of, write_csv, writing
from memssl_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from analysis.attention import Attention
    from analysis.heads import HeadTable
    from analysis.rollout import Rolled

SHOWN = ("all", "mean", "max", "rollout", "coloured", "norms")


def attention(
    image: Picture,
    layer: int = -1,
    query: str = "cls",
    size: int | None = None,
    show: Annotated[str, tyro.conf.arg(metavar="MAP")] = "all",
    start: int = 0,
    mass: float = 1.0,
    heads: Annotated[str | None, tyro.conf.arg(metavar="LIST")] = None,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Where a token of a picture reads: attention over the patches in one transformer block.

    Args:
        image: a picture file
        layer: transformer block, 0-based; negatives count from the last
        query: cls, mean, register:I, a patch index, x,y in pixels, or several of these joined by ;
        size: long side in pixels at which the model reads the picture; as it is if left out
        show: what is drawn: all attention heads beside each other, their mean or max, one head (0-based), rollout,
            heads coloured each where it looks most, or norms of the patch tokens
        start: transformer block from which the rollout begins
        mass: keep only the strongest patches that together hold this share, 0 to 1
        heads: which heads have colours, in the order of the colours, - for a colour left out: 0,2,-,5
        model: embedded, a bundle folder, or random:NAME@SEED
        out: write a picture (.png, .jpg, .webp), a table of the patches (.csv), or rows and norms (.npz)
        json: print numbers for a program
    """
    from analysis.attention import parse_query

    check_out(out, (*PICTURES, ".csv", ".npz"))
    asked, workbench = parse_query(query), workbench_of(model)
    _check_drawing(show, mass, workbench.model.card["attention_heads"])
    found = workbench.attention(image, layer, asked, size)
    rolled = workbench.rollout(image, asked, size, start=start) if show == "rollout" else None
    if rolled and found.layers[0] < rolled.start:
        raise ModelError(f"Block {found.layers[0]} comes before block {rolled.start}, from which the rollout begins.")
    colours = _places(heads, len(found.rows))
    if out and out.suffix.lower() == ".npz":
        import numpy as np

        arrays: dict[str, Any] = {"rows": found.rows, "norms": found.norms, "grid": found.grid}
        if rolled:
            arrays["rollout"] = rolled.rows
        with writing(out), out.open("wb") as file:
            np.savez(file, **arrays, n_prefix=np.array(found.n_prefix))
    elif out and out.suffix.lower() == ".csv":
        names = (f"head_{head}" for head in range(len(found.rows)))
        write_csv(out, ["row", "column", "x_px", "y_px", "mean", "max", *names], _patches(found))
    elif out:
        from memssl_core.data.images import decode_image

        with writing(out):
            _drawn(decode_image(image), found, rolled, show, mass, colours).save(out)
    summary = found.summary()
    if json:
        return print_json(summary)
    rows, columns = found.grid
    print(f"transformer block {found.layers[0]}, {rows}×{columns} patches, each row: one attention head and one query")
    print("head query  on patches  entropy  strongest at (x, y)")
    for head, masses in enumerate(summary["patch_mass"]):
        for index, share in enumerate(masses):
            x, y = summary["strongest_px"][head][index]
            entropy = summary["entropy"][head][index]
            print(f"{head:4d} {index:5d}  {share:10.1%}  {entropy:7.3f}  ({x:.0f}, {y:.0f})")


def heads(
    image: Picture,
    top: int = 20,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Which attention head matters: what silencing each does to the memories a model answers with.

    Args:
        image: a picture file
        top: count how many of so many strongest memories stay
        model: any model source; without a memory the table tells how far the embedding moves
        out: write the table to a .csv file, or draw it into a .png, .jpg or .webp file
        json: print it for a program
    """
    check_out(out, (*PICTURES, ".csv"))
    from memssl_core.cli import StopOnSignal
    from memssl_core.terminal import progress

    workbench, stop = workbench_of(model), StopOnSignal("Stopping…")
    with progress() as listen:
        table = workbench.head_table(image, top, emit=listen, should_stop=stop)
    if out and out.suffix.lower() == ".csv":
        from analysis.heads import COLUMNS

        write_csv(out, COLUMNS, table.rows)
    elif out:
        from analysis.draw import head_table_sheet

        with writing(out):
            head_table_sheet(table).save(out)
    if json:
        return print_json(table.summary())
    _print_table(table)


def pca(
    image: Picture,
    other: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMG")] = None,
    facet: Literal["token", "key", "query", "value"] = "token",
    layer: int = -1,
    size: int | None = None,
    foreground: bool = False,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """The first three principal components of a picture's patches as colours, or of two pictures' together.

    Args:
        image: a picture file
        other: a second one, which shares components and colours
        facet: of which features: tokens, or keys, queries or values of the attention
        layer: transformer block or stage, 0-based; negatives count from the last
        size: long side in pixels at which the model reads each picture; as it is if left out
        foreground: the first component splits off the background, the colours are of a second analysis of the rest
        model: embedded, a bundle folder, or random:NAME@SEED
        out: draw the colours into a .png, .jpg or .webp file, or write the components to a .npz file
        json: print figures for a program
    """
    check_out(out, (*PICTURES, ".npz"))
    images = [one for one in (image, other) if one is not None]
    workbench = workbench_of(model)
    found = workbench.pca(image, other, facet, layer, size, foreground=foreground)
    sides = [("a", found.a, found.front_a), ("b", found.b, found.front_b)][: len(images)]
    if out and out.suffix.lower() == ".npz":
        import numpy as np

        arrays = {f"components_{side}": components for side, components, _ in sides}
        fronts = {f"front_{side}": front for side, _, front in sides}
        with writing(out), out.open("wb") as file:
            np.savez(file, **arrays, **fronts, explained=found.explained)  # type: ignore[arg-type]
    elif out:
        from analysis.draw import pca_sheet

        with writing(out):
            pca_sheet(found, images).save(out)
    shares = [float(front.mean()) for _, _, front in sides if front is not None]
    grids = [list(front.shape) for _, _, front in sides if front is not None]
    if json:
        return print_json({"explained": found.explained.tolist(), "grids": grids, "foreground": shares})
    told = ", ".join(f"{share:.1%}" for share in found.explained)
    print(f"{facet} of layer {layer % workbench.model.card['layers']}: three components hold {told} of the variance")
    for path, (rows, columns), share in zip(images, grids, shares, strict=True):
        words = f", {share:.1%} in the foreground" if foreground else ""
        print(f"{Path(path).name}: {rows}×{columns} cells{words}")


def _check_drawing(show: str, mass: float, count: int) -> None:
    if not 0 < mass <= 1:
        raise ModelError(f"mass is {mass:g}; choose a share above 0, up to 1.")
    if show not in SHOWN and not (show.isdecimal() and int(show) < count):
        heads = f", or an attention head, 0 to {count - 1}" if count else ""
        raise ModelError(f"There is no map {show[:40]!r} to show; choose {', '.join(SHOWN)}{heads}.")


def _places(heads: str | None, count: int) -> list[int | None]:
    """The place of each of `count` attention heads among the colours: the first heads, or as `--heads` says."""
    from analysis.draw import PALETTE

    words = heads.split(",") if heads is not None else [str(head) for head in range(min(count, len(PALETTE)))]
    named = [word for word in words if word != "-"]
    if len(words) > len(PALETTE) or len({*named}) < len(named) or not {*named} <= {str(head) for head in range(count)}:
        raise ModelError(
            f"heads is {heads!r}; name up to {len(PALETTE)} different heads, 0 to {count - 1}, such as 0,2,-,1."
        )
    return [words.index(str(head)) if str(head) in words else None for head in range(count)]


def _drawn(
    picture: Image.Image, found: Attention, rolled: Rolled | None, show: str, mass: float, colours: list[int | None]
) -> Image.Image:
    from analysis import draw
    from analysis.attention import strongest_heads

    if show == "all":
        return draw.attention_sheet(picture, found)
    asked = [token - found.n_prefix for token in found.queries if token >= found.n_prefix]
    if show == "norms":
        return draw.norms_map(picture, found.norms[0].reshape(found.grid), asked=asked)
    maps = found.maps().mean(1)
    if show == "coloured":
        owners = strongest_heads(maps.reshape(len(maps), -1), mass).reshape(found.grid)
        return draw.coloured_heads(picture, owners, colours, asked=asked)
    weights = rolled.maps()[found.layers[0]] if rolled else _weights(maps, show)
    return draw.attention_map(picture, weights, draw.high(weights if rolled else maps), mass=mass, asked=asked)


def _weights(maps: np.ndarray, show: str) -> np.ndarray:
    """Of [attention heads, rows, columns] the mean, the max or one head."""
    return {"mean": maps.mean, "max": maps.max}[show](0) if show in SHOWN else maps[int(show)]


def _patches(found: Attention) -> Iterator[list[int | float | str]]:
    """A line a patch; the mean over the queries, if there are several."""
    maps = found.maps().mean(1)
    for patch, (row, column) in enumerate(
        (row, column) for row in range(found.grid[0]) for column in range(found.grid[1])
    ):
        weights = maps[:, row, column]
        x, y = found.frame.centre_of(patch)
        told = (f"{value:.7g}" for value in (weights.mean(), weights.max(), *weights))
        yield [row, column, round(x, 2), round(y, 2), *told]


def _print_table(table: HeadTable) -> None:
    named = [("1 - cosine of the embedding with the head silenced", table.moved, "8.5f")]
    if table.kl is not None and table.kept is not None:
        what = f"KL in nats over {table.slots} memories at temperature {table.temperature:g}"
        named = [(what, table.kl, "8.4f"), (f"kept of the {table.top} strongest memories", table.kept, "8.0%"), *named]
    for title, values, form in named:
        print(f"{title}; a row: one transformer block, a column: one attention head")
        print("block " + "".join(f"{head:9d}" for head in range(values.shape[1])))
        for block, row in zip(table.blocks, values, strict=True):
            print(f"{block:5d} " + "".join(f" {value:{form}}" for value in row))

"""`python -m analysis VERB`: questions about a model, answered on standard output."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from analysis.cli_compare import compare
from analysis.cli_search import gallery, search
from analysis.cli_see import attention, heads, pca
from analysis.terminal import (
    PICTURES,
    Job,
    Picture,
    Source,
    check_out,
    print_json,
    workbench_of,
    write_csv,
    writing,
)
from memssl_core.errors import MemsslError, ModelError


def neighbours(
    image: Picture,
    space: Literal["memory", "embedding"] = "memory",
    k: int = 20,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """The memories nearest to a picture, by exact search.

    Args:
        image: a picture file
        space: memory compares projections, as the loss does; embedding compares the backbone's output
        k: how many
        model: embedded or a bundle folder
        out: write the neighbours' thumbnails to a .png, .jpg or .webp file
        json: print a list for a program
    """
    check_out(out, PICTURES)
    workbench = workbench_of(model)
    found = workbench.neighbours(image, space, k)
    if out:
        assert workbench.model.memory is not None  # `neighbours` has refused such a model
        from analysis.draw import neighbours_sheet
        from memssl_core.data.images import decode_image

        with writing(out):
            neighbours_sheet(decode_image(image), found, workbench.model.memory).save(out)
    if json:
        return print_json(found.records())
    print(f"{len(found.ids)} nearest slots in {found.space} space, exact search")
    print(" score    slot    step  class       picture")
    for record in found.records():
        where = f"{record['class_name'] or '':<10}  {record['uri'] or ''}"
        print(f"{record['score']:6.3f} {record['id']:7d} {record['step']:7d}  {where}")


def match(
    image_a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    image_b: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None,
    rule: Literal["mutual", "argmax"] = "mutual",
    facet: Literal["token", "key", "query", "value"] | None = None,
    layer: int | None = None,
    n: int | None = None,
    size: int | None = None,
    foreground: Literal["none", "attention", "pca"] = "none",
    position: bool = True,
    check: Literal["crops", "homography", "mirror", "identity"] | None = None,
    seed: int = 0,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Which patches of one picture the model finds in another.

    Args:
        image_a: a picture file
        image_b: the other one; leave it out with --check
        rule: mutual keeps the pairs of which each is the other's nearest by cosine; argmax gives each patch of A the
            largest raw product in B
        facet: what is compared: tokens, or keys, queries or values of the attention; left out, the measured best
        layer: transformer block or stage, 0-based; negatives count from the last; left out, the measured best
        n: show only so many, the best ones
        size: long side in pixels at which the model reads each picture; as it is if left out
        foreground: only matches inside it on both sides, by attention or by the first principal component
        position: --no-position takes out what a linear fit can read of a patch's place
        check: make both pictures out of A, with known geometry, and tell how many matches are right
        seed: which draw of the check
        model: embedded, a bundle folder, or random:NAME@SEED
        out: draw the matches into a .png, .jpg or .webp file, or write their points to a .csv file
        json: print points and scores for a program
    """
    from analysis.matches import COLUMNS, known_accuracy, only
    from memssl_core.data.images import decode_image
    from memssl_core.data.pairs import known_pair

    check_out(out, (*PICTURES, ".csv"))
    if (image_b is None) == (check is None):
        raise ModelError("Two pictures are matched: name a second one, or make it from the first with --check crops.")
    known = known_pair(decode_image(image_a), check, seed) if check else None
    a, b = (known.a, known.b) if known else (decode_image(image_a), decode_image(image_b or ""))
    found = workbench_of(model).match(a, b, rule, facet, layer, None, size, foreground=foreground, position=position)
    accuracy = known_accuracy(found, known.homography) if known else None
    if n is not None and n < 1:
        raise ModelError(f"n is {n}; ask for at least 1 match.")
    found = only(found, slice(n))
    if out and out.suffix.lower() == ".csv":
        write_csv(out, COLUMNS, found.rows)
    elif out:
        from analysis.draw import matches_sheet

        with writing(out):
            matches_sheet(a, b, found).save(out)
    if json:
        return print_json(found.summary() | ({"accuracy": accuracy} if accuracy else {}))
    print(f"{len(found.scores)} matches, {found.facet} of layer {found.layer}, rule {found.rule}")
    print("cosine   A (x, y)         B (x, y)")
    for score, (x, y), (u, v) in zip(found.scores, found.points_a, found.points_b, strict=True):
        print(f"{score:6.3f}   ({x:6.1f}, {y:6.1f}) ({u:6.1f}, {v:6.1f})")
    if accuracy:
        shares = [accuracy[f"acc@{radius}"] for radius in (0, 1, 2)]
        told = ", ".join("none" if v is None else f"{v:.1f} % within {r}" for r, v in enumerate(shares))
        print(f"of all matches right: {told} patches; {accuracy['coverage']:.1f} % of what B shows is matched")


def map_memory(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "embedded",
    space: Literal["memory", "embedding"] = "memory",
    seed: int = 0,
    fast: bool = False,
    min_dist: float = 0.1,
    again: bool = False,
    out: Path | None = None,
    html: Path | None = None,
    json: bool = False,
    job: Job = None,
) -> None:
    """Lay the memory out as a map: UMAP and clusters on its exact neighbours. What is stored is not fitted again.

    Args:
        model: embedded, a bundle folder, hub:OWNER/NAME or run:NAME
        space: memory maps projections, as the loss compares them; embedding maps the backbone's output
        seed: the same one gives the same map on one machine, on one core
        fast: all cores, no seed, simpler clusters; no two such maps are equal
        min_dist: how close points may lie, 0 to 1
        again: fit it although one is stored
        out: also write slot, x, y and cluster to a .parquet file
        html: also write a page of its own, with the pictures under the pointer, to a .html file
        json: print figures and clusters for a program
        job: a folder to tell others in how far it is
    """
    from memssl_core.cli import StopOnSignal
    from memssl_core.jobs import working
    from memssl_core.sources import fetch, open_model
    from memssl_core.terminal import progress

    check_out(out, (".parquet",))
    check_out(html, (".html", ".htm"))
    if not 0 <= min_dist <= 1 or not 0 <= seed < 2**32:
        raise ModelError(f"min_dist is {min_dist} and seed {seed}; give 0 to 1, and a whole number below 2**32.")
    stop = StopOnSignal("Stopping…")
    with progress() as listen, working(job, listen=listen, asked_to_stop=stop) as work:
        from analysis.map import fit_map, map_clusters

        asked = {"emit": work.emit, "should_stop": work.should_stop}
        fetch(model, **asked)
        opened = open_model(model)
        found = fit_map(opened, space, min_dist=min_dist, seed=None if fast else seed, again=again, **asked)
        clusters = map_clusters(opened, found)
        if out:
            from memssl_core.bundle.maps import save_map

            with writing(out):
                save_map(out, found)
        if html:
            from analysis.figure import map_html

            with writing(html):
                html.write_text(map_html(opened, found, clusters), encoding="utf-8")
        work.finish(model)
    told, alone = found.parameters, int((found.cluster < 0).sum())
    if json:
        listed = [asdict(cluster) for cluster in clusters]
        return print_json({"slots": len(found.slot), "unclustered": alone, "clusters": listed, **told})
    print(f"{len(found.slot)} slots in {told['space']} space, {len(clusters)} clusters and {alone} slots in none")
    print(f"{told['method']}, seed {told['seed']}, min_dist {told['min_dist']}, fitted in {told['fit_s']} s")
    for name in ("trustworthiness", "continuity"):
        if name in told:
            print(f"{name}@15: {told[name]:.3f}, of the first two principal components {told[name + '_pca']:.3f}")
    if "label_agreement" in told:
        agreement, of_space = told["label_agreement"], told["label_agreement_space"]
        print(f"neighbours of the same class: {agreement:.1%} on the map, {of_space:.1%} in the space")
    print("cluster   size  purity  exemplar  name")
    for cluster in clusters:
        purity = "" if cluster.purity is None else f"{cluster.purity:.0%}"
        print(f"{cluster.cluster:7d} {cluster.size:6d} {purity:>7} {cluster.exemplar:9d}  {cluster.name}")


VERBS = {
    "attention": attention,
    "compare": compare,
    "gallery": gallery,
    "heads": heads,
    "map": map_memory,
    "match": match,
    "neighbours": neighbours,
    "pca": pca,
    "search": search,
}


def main(argv: list[str] | None = None) -> int:
    """Run a verb. 0 done, 1 a mistake told in one sentence; wrong usage leaves through SystemExit(2)."""
    try:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="python -m analysis", args=argv)
    except MemsslError as mistake:
        print(mistake, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    return 0

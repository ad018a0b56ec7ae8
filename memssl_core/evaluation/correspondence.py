"""Matches between the patches of two pictures of one scene, checked against its known geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memssl_core.data.images import Frame
from memssl_core.data.pairs import project
from memssl_core.evaluation.result import Result


def true_patches(frame_a: Frame, frame_b: Frame, homography: np.ndarray) -> np.ndarray:
    """The patch of b that holds each patch centre of a, int64 [rows * columns of a]; -1 where there is none to find.

    A patch counts if the homography (float64 [3, 3], px of a to px of b) takes its centre into a patch of b whose own
    centre lies, taken back, within the patches of a.
    """
    found = [frame_b.patch_at(x, y) for x, y in project(homography, _centres(frame_a))]
    cells = np.array([-1 if cell is None else cell for cell in found], np.int64)
    back = project(np.linalg.inv(homography), _centres(frame_b)[cells])  # of -1 whatever comes last, and unused
    returns = [frame_a.patch_at(x, y) is not None for x, y in back]
    return np.where(returns, cells, -1)


def instance_accuracy(
    patches: np.ndarray,
    frame_a: Frame,
    frame_b: Frame,
    homography: np.ndarray,
    *,
    radii: Sequence[int] = (0, 1, 2),
    of: np.ndarray | None = None,
) -> Result:
    """How many predicted pairs of patches lie where the geometry says.

    Args:
        patches: integers [M, 2], a patch of a and the patch of b it is said to match; no patch of a twice.
        frame_a, frame_b, homography: as in `true_patches`, which decides what is valid.
        radii: in patches; the predicted patch may be that many rows and that many columns off (Chebyshev).
        of: bool [rows * columns of a], which patches of a to count; None for all.
    Returns: 'acc@R' for each radius, per cent of the valid pairs; 'end_point_px', from the centre of the predicted
        patch to the true place, mean px of b; all nan without a valid pair. 'coverage', valid pairs per 100 valid
        patches. `n_query` counts the valid pairs, `n_gallery` the patches of b.
    Raises: ValueError if no patch is valid, for patches that do not exist, or a patch of a given twice.
    """
    patches, rows, columns = np.asarray(patches).reshape(-1, 2), frame_b.rows, frame_b.columns
    true = _valid_patches(frame_a, frame_b, homography, of)
    if len(np.unique(patches[:, 0])) < len(patches):
        raise ValueError("a patch of a is matched twice; give each at most once")
    if ((patches < 0) | (patches >= (len(true), rows * columns))).any():
        raise ValueError(f"patches must be from 0 to {len(true) - 1} of a and 0 to {rows * columns - 1} of b")
    of_a, of_b = patches[true[patches[:, 0]] >= 0].T
    off = np.maximum(abs(of_b // columns - true[of_a] // columns), abs(of_b % columns - true[of_a] % columns))
    distance = project(homography, _centres(frame_a)[of_a]) - _centres(frame_b)[of_b]
    mean = lambda values: float(values.mean()) if len(values) else float("nan")
    metrics = {f"acc@{radius}": 100 * mean(off <= radius) for radius in radii}
    metrics["end_point_px"] = mean(np.hypot(*distance.T))
    metrics["coverage"] = 100 * len(of_a) / int((true >= 0).sum())
    return Result(
        protocol="instance-correspondence",
        version="1.0.0",
        metrics=metrics,
        n_query=len(of_a),
        n_gallery=rows * columns,
        config={"radii": list(radii), "grid_a": [frame_a.rows, frame_a.columns], "grid_b": [rows, columns]},
    )


def chance_accuracy(
    frame_a: Frame,
    frame_b: Frame,
    homography: np.ndarray,
    radii: Sequence[int] = (0, 1, 2),
    *,
    of: np.ndarray | None = None,
) -> dict[str, float]:
    """The 'acc@R' of `instance_accuracy` that a patch of b drawn blindly for each valid patch of a has on average.

    Exact: the share of b's patches within the radius of the true one, fewer at the edges. Raises: ValueError if no
    patch is valid.
    """
    true = _valid_patches(frame_a, frame_b, homography, of)
    rows, columns = frame_b.rows, frame_b.columns
    row, column = np.divmod(true[true >= 0], columns)

    def near(place: np.ndarray, radius: int, count: int) -> np.ndarray:
        return np.minimum(place + radius, count - 1) - np.maximum(place - radius, 0) + 1

    hits = {radius: near(row, radius, rows) * near(column, radius, columns) for radius in radii}
    return {f"acc@{radius}": 100 * float(hits[radius].mean()) / (rows * columns) for radius in radii}


def _valid_patches(frame_a: Frame, frame_b: Frame, homography: np.ndarray, of: np.ndarray | None) -> np.ndarray:
    """`true_patches`, with -1 also where `of` is False; at least one is there."""
    true = true_patches(frame_a, frame_b, homography)
    if of is not None:
        if np.shape(of) != true.shape:
            raise ValueError(f"of must be bool [{len(true)}], one for each patch of a, not {np.shape(of)}")
        true = np.where(of, true, -1)
    if not (true >= 0).any():
        raise ValueError("no patch of a is seen in b, so there is nothing to count; give pictures that overlap")
    return true


def _centres(frame: Frame) -> np.ndarray:
    """(x, y) of all patch centres, float64 [rows * columns, 2]."""
    return np.array([frame.centre_of(patch) for patch in range(frame.rows * frame.columns)])

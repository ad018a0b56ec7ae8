"""A bundle with very many memories and a stored map, made within seconds: random weights, synthetic vectors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from PIL import Image

from memssl_core.bundle.layout import MAP, Bundle, bundle_config
from memssl_core.bundle.maps import MemoryMap, save_map
from memssl_core.bundle.table import MemoryTable
from memssl_core.model.backbone import create_backbone
from memssl_core.model.head import Head
from tests.browser.small_bundle import SIZES, TRANSFORM

CLUSTERS = 100
MISNAMED = 0.15  # of the slots are of another class than their cluster
PICTURES = 1000
STEP_KEYS = 64
WIDTH = 64  # of the vectors: the map shows none of them, and a million stay light
WORDS = ("heron", "lantern", "teapot", "tram", "walnut", "anchor", "canyon", "violin", "ladder", "beetle")


def write_big_bundle(folder: Path, slots: int, seed: int = 0) -> Path:
    """Every slot is written and has a point, one of 100 overlapping clusters, a class, and a picture of one pixel."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = SIZES
    backbone = create_backbone("vit_tiny_patch16_224", **sizes).eval()
    head = Head(sizes["embed_dim"], 32, WIDTH).eval()
    cluster = clusters(slots, rng)
    config = bundle_config(
        "vit_tiny_patch16_224",
        backbone,
        sizes,
        transform=TRANSFORM,
        head=head,
        memory_slots=slots,
        provenance={"name": f"big-{slots}", "license": "Apache-2.0"},
    )
    parts = {"backbone": backbone.state_dict(), "head": head.state_dict(), "memory": memory_table(cluster, rng)}
    bundle = Bundle(config=config, readme="# big\n", **parts)
    bundle.save(folder)
    parameters = {
        "bundle_hash": bundle.bundle_hash,
        "space": "memory",
        "method": "umap",
        "n_neighbors": 15,
        "min_dist": 0.1,
        "seed": 0,
        "clustering": "synthetic",
        "versions": {},
        "fit_s": 0.0,
    }
    xy = scattered(cluster, 2, rng, rng.uniform(0.01, 0.07, CLUSTERS))
    save_map(folder / MAP, MemoryMap(np.arange(slots), xy, cluster, parameters))
    return folder


def clusters(slots: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [K], 0 the largest of CLUSTERS of very different sizes; their slots lie all over the ring."""
    shares = np.sort(rng.gamma(2, size=CLUSTERS))[::-1]
    places = rng.permutation(slots) / slots
    return np.searchsorted(shares.cumsum() / shares.sum(), places, "right").clip(max=CLUSTERS - 1).astype(np.int32)


def scattered(cluster: np.ndarray, dim: int, rng: np.random.Generator, spread: np.ndarray) -> np.ndarray:
    """float32 [K, dim]: normally distributed about the middles of the clusters, which are within -1 and 1."""
    middles = rng.uniform(-1, 1, (CLUSTERS, dim)).astype(np.float32)
    points = rng.standard_normal((len(cluster), dim), np.float32)
    points *= spread.astype(np.float32)[cluster, None]
    points += middles[cluster]
    return points


def memory_table(cluster: np.ndarray, rng: np.random.Generator) -> MemoryTable:
    """The memory has gone round once and a third."""
    slots = len(cluster)
    vectors = scattered(cluster, WIDTH, rng, np.full(CLUSTERS, 0.8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    label = np.where(rng.random(slots) < MISNAMED, rng.integers(0, CLUSTERS, slots), cluster)
    names = pa.array([f"{WORDS[i // 10]} {WORDS[i % 10]}" for i in range(CLUSTERS)])
    image_id = rng.integers(0, PICTURES, slots)
    compute: Any = pyarrow.compute
    uri = compute.binary_join_element_wise(f"drawn:0:{PICTURES}#", pa.array(image_id).cast(pa.string()), "")
    corner, side = rng.uniform(0, 0.4, (slots, 2)), rng.uniform(0.3, 0.6, (slots, 1))
    cursor = slots // 3
    return MemoryTable(
        vectors=vectors,
        cursor=cursor,
        written=slots + cursor,
        image_id=image_id,
        uri=uri,
        label=label,
        class_name=names.take(pa.array(label)),
        step=((np.arange(slots) - cursor) % slots + cursor) // STEP_KEYS,
        box=np.concatenate([corner, corner + side], 1),
        thumbnails=pa.array([pixel()]).take(pa.array(np.zeros(slots, np.int64))),
    )


def pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "#808080").save(file, "WEBP", lossless=True)
    return file.getvalue()

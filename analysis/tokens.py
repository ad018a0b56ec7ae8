"""What a model makes of pictures on the way to an answer: tokens, feature maps and block inputs, the last ones kept."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import cachetools
import numpy as np
import torch
from torch import Tensor

from memssl_core.data.images import Frame, ImageSource, decode_image, fit_to_patches, picture_key
from memssl_core.errors import ModelError
from memssl_core.model.features import BlockTokens, feature_map, n_layers, patch_px, walk
from memssl_core.model.silencing import Passage, pass_through
from memssl_core.sources import Model

MAX_TOKENS = 4096
"""patches of a picture at most: 512×512 px at patch 8, 1024×1024 at patch 16; a larger picture is reduced"""
MAX_INPUT_PIXELS = 1 << 20
"""pixels of a picture at most, which binds where cells are larger: 1024×1024 px"""
CACHE_BYTES = 320 << 20
MAX_KEPT = 16
"""results kept at most, so that many small uploads do not fill the memory"""


@dataclass(frozen=True, eq=False)
class Walked:
    """A picture's tokens in every transformer block."""

    pixels: Tensor
    """[3, H, W]"""
    frame: Frame
    blocks: list[BlockTokens]
    """[1, N, C]"""
    final: Tensor
    """[1, N, C] after the final norm"""

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.final.nbytes + sum(block.nbytes for block in self.blocks)


@dataclass(frozen=True, eq=False)
class CellMap:
    """A feature map of a picture."""

    cells: np.ndarray
    """float32 [rows, columns, C]"""
    frame: Frame

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes


class Tokens:
    """One model's; safe across threads, which run it one at a time. `key` and `size` as the workbench has them."""

    def __init__(self, model: Model, max_tokens: int) -> None:
        self.model, self.max_tokens, self.device = model, max_tokens, torch.device("cpu")
        self.forward = threading.Lock()
        """held while the model runs"""
        self._kept: cachetools.LRUCache[Any, Any] = cachetools.LRUCache(CACHE_BYTES, _weight)
        self._lock = threading.Lock()

    def move(self, device: torch.device) -> None:
        """Forget what lies on another device; the model itself is moved by the workbench."""
        self.device = device
        with self._lock:
            self._kept.clear()

    def pixels(self, image: ImageSource, size: int | None) -> tuple[Tensor, Frame]:
        """[3, H, W] in whole patches, aspect kept, and the frame of them. ModelError for a size nobody means."""
        if size is not None and not 1 <= size <= 16_384:
            raise ModelError(f"size is {size}; choose a long side from 1 to 16384 pixels.")
        side = patch_px(self.model.backbone)
        most = max(1, min(self.max_tokens, MAX_INPUT_PIXELS // side**2))
        fitted, frame = fit_to_patches(decode_image(image), patch_px=side, size=size, max_tokens=most)
        return self.model.transform.normalise(fitted), frame

    def walk(self, image: ImageSource, size: int | None, key: str | None) -> Walked:
        """ModelError as `why_no_attention` says."""
        sized = key or picture_key(image), size
        walked = self._known(sized)
        if walked is None:
            pixels, frame = self.pixels(image, size)
            with self.forward, torch.inference_mode():
                walked = Walked(pixels, frame, *walk(self.model.backbone, pixels[None].to(self.device)))
            self._keep(sized, walked)
        return walked

    def passage(self, image: ImageSource, key: str | None) -> Passage:
        """Of the picture under the model's own transform. ModelError as `why_no_attention` says."""
        named = key or picture_key(image), "passage"
        passage = self._known(named)
        if passage is None:
            pixels = self.model.transform(decode_image(image))[None].to(self.device)
            with self.forward:
                passage = pass_through(self.model.backbone, pixels)
            self._keep(named, passage)
        return passage

    def map(self, image: ImageSource, size: int | None, layer: int) -> CellMap:
        """A layer's map. A model that takes no picture but its own size gets its own centre crop if `size` is None."""
        sized = picture_key(image), size, layer
        known = self._known(sized)
        if known is None:
            picture, box = decode_image(image), (0.0, 0.0, 1.0, 1.0)
            pixels, frame = self.pixels(picture, size)
            try:
                cells = self._cells(pixels, layer)
            except ModelError:
                if size is not None:
                    raise
                transform = self.model.transform
                cells, box = self._cells(transform(picture), layer), transform.crop_box(*picture.size)
            if cells[..., 0].size > self.max_tokens:
                grid = "×".join(str(side) for side in cells.shape[:2])
                raise ModelError(f"Layer {layer} has {grid} cells here; choose a later one or a smaller size.")
            known = CellMap(cells, _frame_of_cells(frame, cells.shape[:2], box))
            self._keep(sized, known)
        return known

    def _cells(self, pixels: Tensor, layer: int) -> np.ndarray:
        backbone = self.model.backbone
        asked = None if layer == n_layers(backbone) - 1 else layer
        with self.forward, torch.inference_mode():
            cells = feature_map(backbone, pixels[None].to(self.device), asked)[0]
        return cells.permute(1, 2, 0).float().cpu().numpy()

    def _known(self, key: tuple) -> Any:
        with self._lock:
            return self._kept.get(key)

    def _keep(self, key: tuple, result: Walked | CellMap | Passage) -> None:
        if _weight(result) <= CACHE_BYTES:
            with self._lock:
                self._kept[key] = result


def _weight(result: Walked | CellMap | Passage) -> int:
    return max(result.nbytes, CACHE_BYTES // MAX_KEPT)


def _frame_of_cells(frame: Frame, cells: tuple[int, ...], box: tuple[float, float, float, float]) -> Frame:
    """The frame of (rows, columns) cells that share a box (x0, y0, x1, y1 in 0..1) of the picture evenly."""
    (rows, columns), (x0, y0, x1, y1) = cells, box
    scale_x = columns * frame.patch_px / ((x1 - x0) * frame.width)
    scale_y = rows * frame.patch_px / ((y1 - y0) * frame.height)
    left_px, top_px = x0 * frame.width * scale_x, y0 * frame.height * scale_y
    return Frame(frame.width, frame.height, rows, columns, frame.patch_px, scale_x, scale_y, left_px, top_px)

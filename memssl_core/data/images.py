"""The one door for pictures: decode what a person hands in, lay patches over it, make it model input."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from memssl_core.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 50_000_000
MAX_PIXELS = 64_000_000
MIN_SIDE_PX, MAX_SIDE_PX = 8, 16_384
MID_GREY = (128, 128, 128, 255)
# Decoded by Pillow itself (EPS would start Ghostscript), recognised by a signature, one picture size in the header.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NUDGE = 1e-9  # patches: what lies on an edge is rounded to the same side here as in ui/static/frame.js
MAX_ASPECT = 64  # of a picture that Transform enlarges: bounds the memory of a hostile 16384x8

TOO_LARGE_FILE = f"This file is larger than {MAX_BYTES // 10**6} MB. Choose a smaller picture."
TOO_LARGE = (
    f"This picture is too large: at most {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE_PX} on a side can be read. "
    "Make it smaller, or choose another picture."
)
UNREADABLE = "This is not a picture that can be read. Choose a JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP file."
HEIC = "This is not a picture that can be read: HEIC is not supported here. Save it as JPEG or PNG first."
CUT_OFF = "The file ends early, probably an interrupted download. Save it again, or choose another picture."
DAMAGED = "This picture is damaged and cannot be decoded. Save it again, or choose another picture."

ImageSource = str | Path | bytes | BinaryIO | Image.Image | np.ndarray


def decode_image(source: ImageSource, *, as_published: bool = False) -> Image.Image:
    """The picture upright, in sRGB, mode RGB, at its full size.

    First frame only; turned as its EXIF says; 16-bit values divided by 257, other wide values scaled from their range
    to 0..255; transparency shown on mid-grey; an embedded colour profile applied. At most 50 MB, 64 million pixels,
    sides 8..16384; sizes are checked before pixels are decoded.

    Args:
        source: path, the bytes of a file, an open binary file, a PIL image, or uint8 [H,W,3].
        as_published: only Pillow's `convert("RGB")`, as reference evaluations do: no turn, no profile, any side >= 1.
    Returns: a new image; `.info["note"]` says in words what was done ("" if nothing), `.info["format"]` is Pillow's
        name of the file format ("" if it was no file).
    Raises: ImageError, in sentences for a person; of a path only the file's name is told.
    """
    if not isinstance(source, str | Path):
        return _decode(source, as_published)
    try:
        return _decode(read_file(Path(source)), as_published)
    except ImageError as problem:
        raise ImageError(f"{printable(Path(source).name)}: {problem}") from None


def read_file(path: Path) -> bytes:
    """The bytes of a regular file of at most 50 MB. Raises ImageError, which does not tell the path."""
    try:
        if path.is_file():
            if path.stat().st_size > MAX_BYTES:
                raise ImageError(TOO_LARGE_FILE)
            return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        pass
    raise ImageError("This file cannot be opened. Check that it exists and may be read.")


def picture_key(image: ImageSource) -> str:
    """SHA-256 of a picture as it was handed in: the file's bytes, or the pixels with their shape and type."""
    if isinstance(image, str | Path):
        path = Path(image)
        readable = path.is_file() and path.stat().st_size <= MAX_BYTES
        image = path.read_bytes() if readable else decode_image(image)  # which says what is wrong with it
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, Image.Image):
        is_plain = image.mode == "RGB" and not image.getexif() and "icc_profile" not in image.info
        image = np.asarray(image if is_plain else decode_image(image))
    if not isinstance(image, np.ndarray):
        raise ImageError("An open file can be read only once; hand over its bytes or its path.")
    header = f"{image.shape} {image.dtype}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(image).tobytes()).hexdigest()


def picture_suffixes() -> frozenset[str]:
    """The file name endings of the formats `decode_image` reads: lower case, with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def printable(text: str) -> str:
    r"""`text` with control characters and other invisible ones written as escapes (`\x1b`)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _decode(source: bytes | BinaryIO | Image.Image | np.ndarray, as_published: bool) -> Image.Image:
    image = _opened(source)
    file_format = image.format or ""
    if max(image.size) > MAX_SIDE_PX or image.width * image.height > MAX_PIXELS:
        raise ImageError(TOO_LARGE)
    if min(image.size) < (smallest := 1 if as_published else MIN_SIDE_PX):
        raise ImageError(
            f"This picture is only {image.width}×{image.height} pixels; it needs at least {smallest} on each side. "
            "Choose a larger one."
        )
    try:
        if as_published:
            image, notes = image.convert("RGB"), []
        else:
            image, notes = _as_seen(image.copy() if image is source else image)
    except Exception as problem:  # decoders meet hostile files and raise anything
        cut_off = isinstance(problem, EOFError) or "truncated" in str(problem)
        raise ImageError(CUT_OFF if cut_off else DAMAGED) from None
    image.info = {"note": ", ".join(notes), "format": file_format}
    return image


def _opened(source: bytes | BinaryIO | Image.Image | np.ndarray) -> Image.Image:
    """A PIL image of which only the header has been read."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ImageError(
                f"A picture given as an array must be uint8 [H,W,3], not {source.dtype} {list(source.shape)}."
            )
        return Image.fromarray(source)
    data = source if isinstance(source, bytes) else source.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(TOO_LARGE_FILE)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise ImageError(TOO_LARGE) from None
    except Exception as problem:
        is_heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
        known = not isinstance(problem, UnidentifiedImageError)
        raise ImageError(HEIC if is_heic else DAMAGED if known else UNREADABLE) from None


def _as_seen(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Decode and bring to upright sRGB; also what was done, in words. May change `image` itself."""
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("first frame of several")
    turn = 1
    with suppress(Exception):  # damaged EXIF must not cost the picture
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)  # before load(), which turns a TIFF
    image.load()
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if turn in range(2, 9):
        notes.append("rotated by EXIF")

    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        notes.append("16-bit scaled" if image.mode.startswith("I;16") else "values scaled to 0–255")
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode == "CMYK":
        notes.append("CMYK turned into RGB")
    elif image.mode != "L":
        image = image.convert("RGB")

    if profile:
        try:
            image, changed = _to_srgb(image, profile)
            notes += ["colours turned into sRGB"] * changed
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.append("unusable colour profile ignored")
    if image.mode == "RGBA":
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("alpha on grey")
        image = Image.alpha_composite(Image.new("RGBA", image.size, MID_GREY), image)
    return image.convert("RGB"), notes


def _to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        levels = values / np.float32(257)
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        levels = np.nan_to_num(np.interp(values, (low, max(high, np.nextafter(low, math.inf))), (0, 255)))
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, bool]:
    """Apply an ICC profile; False when it says sRGB already and nothing changed."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if image.mode != "CMYK" and "sRGB" in ImageCms.getProfileDescription(source):
        return image, False
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    assert converted is not None  # only None when changed in place
    return converted, True


@dataclass(frozen=True)
class Frame:
    """How the pixels of an original picture map to the patches of a model input, and back.

    Positions are (x, y) in pixels of the upright original; integers are pixel centres, so the picture covers
    -0.5 .. width-0.5. Patches are numbered row by row. `left_px`, `top_px` is where a crop begins in the input.
    """

    width: int  # of the original, px
    height: int
    rows: int
    columns: int
    patch_px: int  # side of a patch, model-input px
    scale_x: float  # model-input px per original px
    scale_y: float
    left_px: float = 0
    top_px: float = 0

    def _original(self, column: float, row: float) -> tuple[float, float]:
        u, v = column * self.patch_px, row * self.patch_px
        return (u + self.left_px) / self.scale_x - 0.5, (v + self.top_px) / self.scale_y - 0.5

    def centre_of(self, patch: int) -> tuple[float, float]:
        """(x, y) of a patch's middle."""
        row, column = divmod(patch, self.columns)
        return self._original(column + 0.5, row + 0.5)

    def box_of(self, patch: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1), a patch's edges in the same coordinates: without a crop the first one begins at -0.5."""
        row, column = divmod(patch, self.columns)
        return *self._original(column, row), *self._original(column + 1, row + 1)

    def patch_at(self, x: float, y: float) -> int | None:
        """The patch that covers a position, on an edge the next one; None outside the patches."""
        column = ((x + 0.5) * self.scale_x - self.left_px) / self.patch_px + NUDGE
        row = ((y + 0.5) * self.scale_y - self.top_px) / self.patch_px + NUDGE
        if not (0 <= column < self.columns and 0 <= row < self.rows):
            return None
        return int(row) * self.columns + int(column)


def fit_to_patches(
    image: Image.Image, *, patch_px: int, size: int | None = None, max_tokens: int
) -> tuple[Image.Image, Frame]:
    """Resize (bicubic) to whole patches with the aspect kept as well as whole patches allow.

    Args:
        image: RGB.    patch_px: side of a patch.    max_tokens: the most patches; a larger picture is reduced.
        size: wanted long side, px; None keeps the picture's own.
    Returns: the resized image, whose `.info["note"]` tells a reduction, and the frame of its patches.
    """

    def grid(scale: float) -> tuple[int, int]:
        return max(1, round(image.height * scale / patch_px)), max(1, round(image.width * scale / patch_px))

    wanted = scale = (size or max(image.size)) / max(image.size)
    while math.prod(grid(scale)) > max_tokens:
        scale *= 0.99
    rows, columns = grid(scale)
    fitted = image.resize((columns * patch_px, rows * patch_px), Image.Resampling.BICUBIC)
    if (rows, columns) != grid(wanted):
        notes = image.info.get("note"), f"reduced to {rows}×{columns} patches"
        fitted.info["note"] = ", ".join(filter(None, notes))
    scale_x, scale_y = fitted.width / image.width, fitted.height / image.height
    return fitted, Frame(image.width, image.height, rows, columns, patch_px, scale_x, scale_y)


@dataclass(frozen=True)
class Transform:
    """A model's own way in: short side to `resize_px` (Pillow, antialiased), centre crop, 0..1, normalise.

    The same numbers as torchvision's and timm's evaluation transform: the long side is floored, the crop's offset
    rounded with halves to even. Defaults are ImageNet's mean and deviation, the customary ones.
    """

    resize_px: int
    crop_px: int
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"
    """`squash`: both sides to `resize_px` whatever the aspect, as timm does for SigLIP"""

    def __post_init__(self) -> None:
        if self.crop_mode not in ("center", "squash"):
            raise ConfigError(f"crop_mode {printable(self.crop_mode)!r} is unknown; choose center or squash")
        if self.interpolation.upper() not in Image.Resampling.__members__:
            names = ", ".join(Image.Resampling.__members__).lower()
            raise ConfigError(f"interpolation {printable(self.interpolation)!r} is unknown; choose one of {names}")
        if not 0 < self.crop_px <= self.resize_px:
            raise ConfigError(
                f"crop_px {self.crop_px} must be from 1 to resize_px {self.resize_px}, the picture it is cut from"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image of any size -> float32 [3,crop_px,crop_px]."""
        if self.crop_mode == "squash":
            return self.normalise(self._cropped(image, (self.resize_px, self.resize_px)))
        short = min(image.size)
        if max(image.size) > MAX_ASPECT * short:
            limit = MAX_ASPECT * short
            image = ImageOps.fit(image, (min(image.width, limit), min(image.height, limit)))
        width, height = (self.resize_px if side == short else int(self.resize_px * side / short) for side in image.size)
        return self.normalise(self._cropped(image, (width, height)))

    def _cropped(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.crop_px) / 2) for side in size)
        return image.crop((left, top, left + self.crop_px, top + self.crop_px))

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that is kept, about: x0, y0, x1, y1 in 0..1 of it."""
        share = self.crop_px / self.resize_px
        short = min(width, height)
        across, down = (share * short / side if self.crop_mode == "center" else share for side in (width, height))
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2

    def normalise(self, image: Image.Image) -> Tensor:
        """RGB image -> float32 [3,H,W]: divided by 255, less the mean, over the deviation; no resizing."""
        import torch

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return pixels.sub(mean).div(std).contiguous()

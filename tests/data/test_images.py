from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torchvision import transforms as tv

from memssl_core.data.images import Frame, Transform, decode_image, fit_to_patches, picture_suffixes, printable
from memssl_core.errors import ConfigError, ImageError


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth coloured blobs, as a JPEG can keep them."""
    grid = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def same(*pictures) -> bool:
    first, second = map(np.asarray, pictures)
    return np.array_equal(first, second)


def distance(*pictures) -> np.ndarray:
    """Per pixel and channel, in levels."""
    first, second = (np.asarray(picture, int) for picture in pictures)
    return np.abs(first - second)


def sentence(source, **options) -> str:
    """What a person reads when `source` is refused: text without a path, a type name or a traceback."""
    with pytest.raises(ImageError) as caught:
        decode_image(source, **options)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "/" not in text
    assert not any(word in text for word in ("Error", "Exception", "BytesIO", "PIL", "object at"))
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return text


# Every way in, and what is changed on the way


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path):
    picture = noise(40, 30)
    path = tmp_path / "picture.png"
    picture.save(path)
    with path.open("rb") as file:
        ways = [decode_image(way) for way in (path, str(path), path.read_bytes(), file, picture, np.array(picture))]
    for way in ways:
        assert way.mode == "RGB" and way.info["note"] == ""
        assert same(way, picture)
    assert [way.info["format"] for way in ways] == ["PNG"] * 4 + [""] * 2


def test_a_picture_handed_in_is_left_as_it_was():
    turned = Image.open(io.BytesIO(encoded(noise(40, 30), "PNG", exif=exif(6))))
    assert decode_image(turned).size == (30, 40)
    assert turned.size == (40, 30) and "note" not in turned.info


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(orientation: int, file_format: str):
    data = encoded(noise(40, 24), file_format, exif=exif(orientation))
    stored = np.asarray(Image.open(io.BytesIO(encoded(noise(40, 24), file_format))))
    image = decode_image(data)
    assert same(image, TURNS[orientation](stored))
    assert image.info["note"] == ("rotated by EXIF" if orientation > 1 else "")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture():
    assert decode_image(encoded(noise(40, 24), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == (40, 24)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_values_are_scaled_not_clipped(file_format: str):
    ramp = np.linspace(0, 65535, 64 * 16).astype(np.uint16).reshape(16, 64)
    image = decode_image(encoded(Image.fromarray(ramp), file_format))
    assert same(np.asarray(image)[..., 0], np.rint(ramp / 257))
    assert "scaled" in image.info["note"]


def test_float_pictures_span_black_to_white_whatever_their_range():
    for low, high in ((-3.0, 5.0), (0.0, 1e-3), (-3e38, 3e38)):
        ramp = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
        assert same(np.asarray(decode_image(Image.fromarray(ramp)))[..., 0].ravel(), np.arange(256))
    holes = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    holes[0, :3] = np.nan, np.inf, -np.inf
    assert np.asarray(decode_image(Image.fromarray(holes)))[0, :3, 0].tolist() == [0, 255, 0]
    for constant in (np.full((8, 8), 7.0, np.float32), np.full((8, 8), np.nan, np.float32)):
        assert np.unique(np.asarray(decode_image(Image.fromarray(constant)))).size == 1


def test_transparent_parts_are_grey_and_their_hidden_colours_never_show():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255  # red under every alpha
    pixels[8:, :, 3] = 255
    pixels[4:8, :, 3] = 128
    image = np.asarray(decode_image(encoded(Image.fromarray(pixels), "PNG")))
    assert (image[:4] == 128).all()
    assert (image[8:] == (255, 0, 0)).all()
    assert distance(image[4:8], (192, 64, 64)).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB", "1"])
def test_transparency_of_other_modes_is_grey_too(mode: str):
    picture = Image.new(mode, (16, 16), 0)
    data = encoded(picture, "PNG", **({} if mode == "LA" else {"transparency": (0, 0, 0) if mode == "RGB" else 0}))
    image = decode_image(data)
    assert np.unique(np.asarray(image)).tolist() == [128] and image.info["note"] == "alpha on grey"
    assert decode_image(encoded(noise(16, 16, "RGBA"), "PNG")).info["note"] == ""  # opaque


def test_palette_and_cmyk_become_rgb():
    palette = noise(40, 30).quantize(16)
    assert same(decode_image(encoded(palette, "PNG")), palette.convert("RGB"))
    cmyk = decode_image(encoded(noise(40, 30, "CMYK"), "JPEG", quality=95))
    assert cmyk.mode == "RGB" and distance(cmyk, noise(40, 30)).mean() < 6


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_is_taken(file_format: str):
    frames = [Image.new("RGB", (20, 12), colour) for colour in ("red", "lime", "blue")]
    image = decode_image(encoded(frames[0], file_format, save_all=True, append_images=frames[1:]))
    assert distance(image, frames[0]).max() <= 2
    assert image.info["note"] == "first frame of several"


def test_a_colour_profile_is_applied_or_ignored_with_a_note():
    picture = Image.new("RGB", (16, 16), (200, 60, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert decode_image(encoded(picture, "PNG", icc_profile=srgb.tobytes())).info["note"] == ""
    broken = decode_image(encoded(picture, "PNG", icc_profile=b"nothing of the kind" * 20))
    assert same(broken, picture) and broken.info["note"] == "unusable colour profile ignored"
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    for profile in (lab, srgb):  # a profile that does not fit the mode
        note = decode_image(encoded(noise(16, 16, "L"), "PNG", icc_profile=profile.tobytes())).info["note"]
        assert note in ("", "unusable colour profile ignored")


def test_a_wide_gamut_profile_changes_colours_and_is_dropped():
    wide = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag in (b"rXYZ", b"gXYZ"):  # exchange red and green primaries: a profile whose right result is known
        at = wide.index(tag)
        wide[at : at + 4] = tag.swapcase()
    for tag, name in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"rXYZ")):
        at = wide.index(tag.swapcase())
        wide[at : at + 4] = name
    wide = wide.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    image = decode_image(encoded(Image.new("RGB", (16, 16), (200, 60, 60)), "PNG", icc_profile=bytes(wide)))
    assert image.info["note"] == "colours turned into sRGB" and "icc_profile" not in image.info
    assert distance(image, (60, 200, 60)).max() <= 2


def test_as_published_is_pillows_convert_and_nothing_more():
    turned = encoded(noise(40, 24, "RGBA"), "PNG", exif=exif(6))
    image = decode_image(turned, as_published=True)
    assert image.size == (40, 24) and image.info["note"] == ""
    assert same(image, Image.open(io.BytesIO(turned)).convert("RGB"))
    assert decode_image(Image.new("L", (1, 1)), as_published=True).size == (1, 1)


# What is refused, and in which words


def flat_png(width: int, height: int) -> bytes:
    """A 1-bit PNG of any size without holding its pixels."""
    zeros = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(zeros.compress(row) for _ in range(height)) + zeros.flush()
    chunks = [(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\1\0\0\0\0"), (b"IDAT", data)]
    parts = [
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_600, 9_600), (16_385, 9)])
def test_too_many_pixels_are_refused_from_the_header(size: tuple[int, int]):
    data = flat_png(*size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sentence(data).startswith("This picture is too large: at most 64 million pixels")
        # without its pixels the answer is the same: nothing was decoded
        assert sentence(data[:60]).startswith("This picture is too large")
    assert decode_image(flat_png(16_384, 8)).size == (16_384, 8)


def test_too_small_says_how_small():
    expected = "This picture is only 1×1 pixels; it needs at least 8 on each side. Choose a larger one."
    assert sentence(encoded(Image.new("RGB", (1, 1)), "PNG")) == expected
    assert "40×7" in sentence(np.zeros((7, 40, 3), np.uint8))
    assert "array" in sentence(np.zeros((0, 40, 3), np.uint8))


@pytest.mark.parametrize("name", ["cat.png", "<img src=x>.png", "\x1b[31mred.png"])
def test_text_renamed_is_refused_with_its_name_only(tmp_path: Path, name: str):
    (tmp_path / name).write_text("Dear reader, this is not a picture.\n" * 40)
    assert sentence(tmp_path / name).startswith(f"{printable(name)}: This is not a picture that can be read. Choose a")
    assert "\x1b" not in sentence(tmp_path / name)
    assert sentence((tmp_path / name).read_bytes()).startswith("This is not a picture")


def test_no_picture_at_all():
    for data in (b"", b"\0", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        assert sentence(data).startswith("This is not a picture that can be read.")
    assert "HEIC" in sentence(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_a_file_cut_off_is_refused(file_format: str):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)), file_format)
    assert decode_image(data).size == (90, 90)
    text = sentence(data[: len(data) * 2 // 3])
    assert text.endswith(("Save it again, or choose another picture.", "GIF, TIFF or BMP file."))
    if file_format in ("JPEG", "PNG", "BMP", "TIFF"):
        assert text.startswith("The file ends early, probably an interrupted download.")


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM"]), st.data())
def test_damaged_bytes_give_a_picture_or_a_sentence(file_format: str, data: st.DataObject):
    damaged = bytearray(encoded(noise(24, 16), file_format, exif=exif(6)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(damaged)).mode == "RGB"
    except ImageError:
        sentence(bytes(damaged))


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(50_000_001)
    assert sentence(path) == "large.png: This file is larger than 50 MB. Choose a smaller picture."
    with path.open("rb") as file:
        assert sentence(file) == "This file is larger than 50 MB. Choose a smaller picture."


def test_files_that_cannot_be_opened(tmp_path: Path):
    for path in (tmp_path / "gone.png", tmp_path, Path("a\0b.png")):
        assert "This file cannot be opened." in sentence(path)


def test_other_arrays_are_refused():
    for array in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8)):
        assert "must be uint8 [H,W,3]" in sentence(array)


def test_suffixes_are_of_formats_that_are_read():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif"} <= picture_suffixes()
    assert not {".eps", ".pdf", ".mpg", ".txt"} & picture_suffixes()


# Frames

grids = st.builds(
    lambda width, height, rows, columns, patch_px: Frame(
        width, height, rows, columns, patch_px, columns * patch_px / width, rows * patch_px / height
    ),
    *[st.integers(8, 5000)] * 2,
    *[st.integers(1, 40)] * 2,
    st.integers(4, 32),
)


@given(grids)
def test_every_patch_is_found_again_from_its_middle(frame: Frame):
    for patch in range(frame.rows * frame.columns):
        x, y = frame.centre_of(patch)
        assert -0.5 < x < frame.width - 0.5 and -0.5 < y < frame.height - 0.5
        assert frame.patch_at(x, y) == patch
        x0, y0, x1, y1 = frame.box_of(patch)
        assert (x0 + x1) / 2 == pytest.approx(x) and (y0 + y1) / 2 == pytest.approx(y)


@given(grids)
def test_boxes_tile_the_picture(frame: Frame):
    boxes = np.array([frame.box_of(patch) for patch in range(frame.rows * frame.columns)])
    boxes = boxes.reshape(frame.rows, frame.columns, 4)
    assert same(boxes[:, :-1, 2], boxes[:, 1:, 0]) and same(boxes[:-1, :, 3], boxes[1:, :, 1])
    assert boxes[0, 0, :2].tolist() == [-0.5, -0.5]
    assert boxes[-1, -1, 2:] == pytest.approx([frame.width - 0.5, frame.height - 0.5])


@given(grids, st.floats(-100, 6000), st.floats(-100, 6000))
def test_a_position_belongs_to_the_patch_whose_box_holds_it(frame: Frame, x: float, y: float):
    patch = frame.patch_at(x, y)
    if patch is None:
        edge = 1e-6
        assert not (-0.5 + edge < x < frame.width - 0.5 - edge and -0.5 + edge < y < frame.height - 0.5 - edge)
    else:
        x0, y0, x1, y1 = frame.box_of(patch)
        assert x0 - 1e-6 <= x <= x1 + 1e-6 and y0 - 1e-6 <= y <= y1 + 1e-6


def test_only_what_the_patches_cover_has_a_patch():
    frame = Frame(32, 16, 1, 2, 16, 1.0, 1.0)
    for position in ((-0.6, 3), (31.5, 3), (3, 15.5), (float("nan"), 3), (float("inf"), 3)):
        assert frame.patch_at(*position) is None
    assert frame.patch_at(-0.5, -0.5) == 0 and frame.patch_at(15.5, 3) == 1 and frame.patch_at(15.49, 3) == 0
    frame = Frame(64, 32, 2, 2, 16, 1.0, 1.0, left_px=16)
    assert frame.box_of(0) == (15.5, -0.5, 31.5, 15.5)
    assert frame.patch_at(15, 0) is None and frame.patch_at(16, 0) == 0 and frame.patch_at(47, 31) == 3


@pytest.mark.parametrize("size", [(96, 96), (200, 67), (67, 200), (301, 159), (40, 33)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_is_painted_in_a_box_arrives_in_its_patch(size: tuple[int, int], orientation: int):
    _, frame = fit_to_patches(Image.new("RGB", size), patch_px=8, size=64, max_tokens=64)
    for patch in range(frame.rows * frame.columns):
        canvas = np.zeros((size[1], size[0], 3), np.uint8)
        x0, y0, x1, y1 = (round(edge + 0.5) for edge in frame.box_of(patch))
        canvas[y0:y1, x0:x1] = 255
        stored = canvas if orientation == 1 else np.rot90(canvas)  # a viewer turns it back by a quarter, clockwise
        image = decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif(orientation)))
        pixels, again = fit_to_patches(image, patch_px=8, size=64, max_tokens=64)
        assert again == frame
        light = np.asarray(pixels, float)[..., 0].reshape(frame.rows, 8, frame.columns, 8).mean((1, 3))
        assert light.argmax() == patch


@pytest.mark.parametrize("size", [(251, 37), (37, 251), (160, 160)])
@pytest.mark.parametrize("long_side", [64, 160, 400])
def test_the_middle_of_a_patch_is_where_its_light_comes_from(size: tuple[int, int], long_side: int):
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))  # each pixel tells its position
    ramps = Image.fromarray(np.dstack([x, y, x]).astype(np.uint8))
    fitted, frame = fit_to_patches(ramps, patch_px=8, size=long_side, max_tokens=10_000)
    seen = np.asarray(fitted, float).reshape(frame.rows, 8, frame.columns, 8, 3).mean((1, 3))
    for row in range(1, frame.rows - 1):  # the edge patches see the border
        for column in range(1, frame.columns - 1):
            at = frame.centre_of(row * frame.columns + column)
            assert seen[row, column, :2] == pytest.approx(at, abs=0.2)  # half a pixel off would show


@given(
    st.integers(8, 3000), st.integers(8, 3000), st.integers(4, 40), st.none() | st.integers(1, 900), st.integers(1, 300)
)
def test_fitting_keeps_to_patches_and_to_the_limit(width, height, patch_px, size, max_tokens):
    picture = Image.new("RGB", (width, height))
    fitted, frame = fit_to_patches(picture, patch_px=patch_px, size=size, max_tokens=max_tokens)
    assert fitted.size == (frame.columns * patch_px, frame.rows * patch_px)
    assert 1 <= frame.rows * frame.columns <= max_tokens
    wanted = (size or max(width, height)) / max(width, height)
    ideal = [max(1, round(side * wanted / patch_px)) for side in (height, width)]
    if np.prod(ideal) <= max_tokens:
        assert [frame.rows, frame.columns] == ideal and "note" not in fitted.info
    else:
        assert fitted.info["note"] == f"reduced to {frame.rows}×{frame.columns} patches"


def test_a_picture_that_just_fits_is_not_reduced():
    fitted, frame = fit_to_patches(Image.new("RGB", (167, 23)), patch_px=16, max_tokens=10)
    assert (frame.rows, frame.columns) == (1, 10) and "note" not in fitted.info


def test_native_size_is_left_alone_and_notes_add_up():
    picture = noise(64, 32)
    fitted, _ = fit_to_patches(picture, patch_px=16, max_tokens=8)
    assert same(fitted, picture)
    picture.info["note"] = "rotated by EXIF"
    assert fit_to_patches(picture, patch_px=16, max_tokens=2)[0].info["note"].startswith("rotated by EXIF, reduced to")


# Transform


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (383, 256), (61, 97), (224, 224), (301, 300), (33, 500)])
@pytest.mark.parametrize("resize_px, crop_px", [(256, 224), (224, 224), (257, 96), (35, 32)])
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_transform_equals_torchvision_to_the_last_bit(size: tuple[int, int], resize_px: int, crop_px: int, name: str):
    picture = noise(*size, seed=sum(size))
    transform = Transform(resize_px, crop_px, name)
    cropped = tv.CenterCrop(crop_px)(tv.Resize(resize_px, tv.InterpolationMode(name))(picture))
    expected = tv.Normalize(transform.mean, transform.std)(tv.ToTensor()(cropped))
    assert torch.equal(transform(picture), expected)


@pytest.mark.parametrize("side, offset", [(383, 80), (385, 80), (387, 82)])
def test_half_an_offset_goes_to_the_even_pixel(side: int, offset: int):
    x = np.tile(np.arange(side), (224, 1))
    numbered = Image.fromarray(np.dstack([x % 256, x // 256, x * 0]).astype(np.uint8))
    out = Transform(224, 224, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))(numbered)
    assert round(float(out[0, 0, 0] + 256 * out[1, 0, 0])) == offset


def test_normalise_by_loops():
    picture = noise(5, 4)
    out = Transform(224, 224).normalise(picture)
    assert out.shape == (3, 4, 5) and out.dtype == torch.float32
    for x, y in ((0, 0), (4, 3), (2, 1)):
        for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
            value = picture.getpixel((x, y))[channel]  # type: ignore[index]
            assert float(out[channel, y, x]) == pytest.approx((value / 255 - mean) / std, abs=1e-6)


def test_a_hostile_aspect_is_cropped_before_it_is_enlarged():
    wide = np.zeros((8, 16_384, 3), np.uint8)
    wide[:, 8_192:] = 255
    for picture in (wide, wide.transpose(1, 0, 2)):
        out = Transform(256, 224, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(np.ascontiguousarray(picture)))
        assert out.shape == (3, 224, 224) and float(out.mean()) == pytest.approx(0.5, abs=0.02)


IMPOSSIBLE = [{"interpolation": "random"}, {"crop_px": 300}, {"crop_px": 0}, {"crop_mode": "border"}]


@pytest.mark.parametrize("settings", IMPOSSIBLE)
def test_impossible_transforms_cannot_be_built(settings: dict):
    with pytest.raises(ConfigError):
        Transform(**{"resize_px": 256, "crop_px": 224, **settings})

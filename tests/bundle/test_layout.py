"""Bundles: what is saved opens to the same numbers, here and in timm; every mistake is one sentence naming the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch
from bundle.making import NOISE_SLOTS, SLOTS, small_bundle, small_memory, thumbnail
from timm.data import resolve_model_data_config

from memssl_core.bundle.layout import FORMAT_VERSION, Bundle, bundle_config, open_bundle
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Transform
from memssl_core.errors import BundleError
from memssl_core.model.backbone import create_backbone, embedding_width


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    small_bundle().save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def columns(memory):
    return {name: getattr(memory, name) for name in memory.__dataclass_fields__}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_round_trip(tmp_path, dtype, batch_norm):
    bundle = small_bundle(batch_norm=batch_norm, dtype=dtype)
    bundle.save(tmp_path / "b")
    again = open_bundle(tmp_path / "b")
    for part in ("backbone", "head", "student"):
        before, after = getattr(bundle, part), getattr(again, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert again.config == json.loads(json.dumps(bundle.config))
    assert (again.readme, again.model_hash, again.bundle_hash) == (
        bundle.readme,
        bundle.model_hash,
        bundle.bundle_hash,
    )
    before, after = columns(bundle.memory), columns(again.memory)
    for name in ("image_id", "label", "step", "box"):
        np.testing.assert_array_equal(before[name], after[name])
    for name in ("cursor", "written", "uri", "class_name", "thumbnails"):
        assert before[name] == after[name], name
    np.testing.assert_allclose(after["vectors"], before["vectors"], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(after["vectors"], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(after["embeddings"], before["embeddings"], rtol=1e-3, atol=1e-6)
    assert after["vectors"].dtype == after["embeddings"].dtype == np.float32


def test_a_bundle_of_a_backbone_alone(tmp_path):
    full = small_bundle(with_memory=False)
    config = full.config | {"memssl": full.config["memssl"] | {"head": None}}
    Bundle(config=config, backbone=full.backbone).save(tmp_path / "b")
    again = open_bundle(tmp_path / "b")
    assert again.head is again.student is again.memory is None
    assert again.make_head() is again.make_student() is None


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    open_bundle(saved).save(tmp_path / "again")
    small_bundle().save(tmp_path / "fresh")
    for name in sorted(file.name for file in saved.iterdir()):
        content = (saved / name).read_bytes()
        assert content == (tmp_path / "fresh" / name).read_bytes(), name
        assert content == (tmp_path / "again" / name).read_bytes(), name


def test_the_hashes_see_what_they_should(saved, copy):
    bundle = open_bundle(saved)
    (copy / "README.md").write_text("another card")
    (copy / "map.parquet").write_bytes(b"a map")
    assert open_bundle(copy).bundle_hash == bundle.bundle_hash
    other = replace(bundle, stored_hash="", memory=small_memory(seed=1))
    assert other.bundle_hash != bundle.bundle_hash and other.model_hash == bundle.model_hash
    assert replace(bundle, head=None).model_hash != bundle.model_hash
    assert small_bundle(seed=1).model_hash != bundle.model_hash


def test_timm_opens_the_folder_and_gives_the_same_embeddings(saved):
    plain = timm.create_model(f"local-dir:{saved}", pretrained=True).eval()
    ours = open_bundle(saved).make_backbone()
    for size in ((64, 64), (40, 88)):
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(plain(pixels), ours(pixels), rtol=0, atol=0)
    looks = resolve_model_data_config(plain)
    assert list(looks["input_size"]) == [3, 64, 64] and list(looks["mean"]) == [0.485, 0.456, 0.406]


def test_head_and_student_compute_what_was_saved(saved):
    bundle: Any = open_bundle(saved)
    backbone, head = bundle.make_student()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        projections = head(backbone(pixels)), bundle.make_head()(bundle.make_backbone()(pixels))
    assert not any(module.training for module in (backbone, head))
    assert (projections[0] - projections[1]).abs().max() > 1e-2
    torch.testing.assert_close(projections[1].norm(dim=1), torch.ones(2))


def test_rows_of_the_memory(saved):
    memory: Any = open_bundle(saved).memory
    known, noise = memory.rows([3, SLOTS - 1])
    assert (known["slot"], known["image_id"], known["uri"]) == (3, 3, "drawn:7:20/3")
    assert (known["label"], known["class_name"], known["step"]) == (3, "barn", 0)
    assert (
        known["has_thumbnail"]
        and memory.thumbnail(3) == thumbnail(15)
        and known["box"] == pytest.approx(small_memory().box[3])
    )
    assert (noise["image_id"], noise["uri"], noise["class_name"], noise["has_thumbnail"]) == (-1, None, None, False)
    assert sum(memory.image_id == -1) == NOISE_SLOTS


def test_a_thumbnail_that_is_no_picture_is_not_handed_out():
    memory = replace(small_memory(), thumbnails=[b"<svg onload=alert(1)>"] * SLOTS)
    assert memory.thumbnail(0) == b""


def test_the_table_shows_pictures_on_the_hub(saved):
    schema = pq.read_schema(saved / "memory.parquet")
    assert schema.names == [
        "slot",
        "image_id",
        "uri",
        "label",
        "class_name",
        "step",
        "x0",
        "y0",
        "x1",
        "y1",
        "thumbnail",
    ]
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["thumbnail"] == {"_type": "Image"}
    assert pq.read_table(saved / "memory.parquet")["thumbnail"].to_pylist()[-1] is None


# --- saving


def test_saving_replaces_a_bundle_and_leaves_no_litter(copy):
    small_bundle(seed=2, with_memory=False).save(copy)
    assert open_bundle(copy).memory is None
    assert not (copy / "memory.parquet").exists()
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy"]


def test_saving_refuses_a_folder_that_is_no_bundle(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(BundleError, match="holiday exists and is not a bundle; choose"):
        small_bundle().save(tmp_path / "holiday")
    assert [entry.name for entry in tmp_path.iterdir()] == ["holiday"]


def test_a_save_that_fails_leaves_the_old_bundle(copy, monkeypatch):
    before = open_bundle(copy).bundle_hash
    monkeypatch.setattr("memssl_core.bundle.layout.pack_rows", lambda memory: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small_bundle(seed=3).save(copy)
    assert open_bundle(copy).bundle_hash == before


def test_a_save_cut_off_between_its_renames_is_undone(copy):
    before = open_bundle(copy).bundle_hash
    copy.rename(copy.with_name(".copy.before"))
    assert open_bundle(copy).bundle_hash == before
    small_bundle(seed=4).save(copy)
    assert open_bundle(copy).bundle_hash != before
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy"]


def test_a_bundle_that_could_not_be_opened_is_not_written(tmp_path):
    bundle = small_bundle()
    memory = replace(bundle.memory, vectors=2 * bundle.memory.vectors)
    with pytest.raises(BundleError, match="unit length"):
        replace(bundle, memory=memory).save(tmp_path / "b")
    assert not list(tmp_path.iterdir())


# --- mistakes: what is done to the folder, and what the sentence must name


def tensors(name, change):
    def spoil(folder):
        state = safetensors.torch.load_file(folder / name)
        state = change({key: value.clone() for key, value in state.items()})
        safetensors.torch.save_file(state, folder / name)

    return spoil


def config(change):
    def spoil(folder):
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return spoil


def table(change):
    def spoil(folder):
        pq.write_table(change(pq.read_table(folder / "memory.parquet")), folder / "memory.parquet")

    return spoil


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def without(name):
    return lambda folder: (folder / name).unlink()


def column(name, values):
    return lambda rows: rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))


def fill(key, value):
    return lambda state: state | {key: torch.full_like(state[key], value)}


FAT = [{"bytes": b"\xff\xd8\xff" + bytes(5000), "path": None}] * SLOTS
MISTAKES = {
    "no config": (without("config.json"), "config.json"),
    "no backbone": (without("model.safetensors"), "model.safetensors is missing"),
    "no head": (without("head.safetensors"), "head.safetensors is missing"),
    "no vectors": (without("memory.safetensors"), "memory.safetensors is missing"),
    "no table": (without("memory.parquet"), "memory.parquet is missing"),
    "text as config": (text("config.json", "hello"), "config.json"),
    "deep config": (text("config.json", "[" * 100_000), "config.json"),
    "list as config": (text("config.json", "[]"), "config.json"),
    "timm's config": (config(lambda c: c.pop("memssl")), 'config.json has no section "memssl"'),
    "newer format": (config(lambda c: c["memssl"].update(format_version=FORMAT_VERSION + 1)), "config.json.*update"),
    "unknown architecture": (config(lambda c: c.update(architecture="vit_tinny")), "config.json.*vit_tinny"),
    "odd heads": (config(lambda c: c["model_args"].update(num_heads=5)), "config.json"),
    "no attention heads": (config(lambda c: c["model_args"].update(num_heads=0)), "config.json"),
    "huge depth": (config(lambda c: c["model_args"].update(depth=1000)), "config.json.*depth"),
    "a file to load": (config(lambda c: c["model_args"].update(checkpoint_path="/x")), "config.json.*checkpoint_path"),
    "width as text": (config(lambda c: c["memssl"]["head"].update(out_dim="16")), "config.json.*out_dim"),
    "other width": (config(lambda c: c["model_args"].update(embed_dim=64)), "model.safetensors.*shape"),
    "other head": (config(lambda c: c["memssl"]["head"].update(in_dim=48)), "head.safetensors.*width 48"),
    "head not described": (config(lambda c: c["memssl"].update(head=None)), "head.safetensors"),
    "memory not described": (config(lambda c: c["memssl"].update(memory=None)), "memory.safetensors"),
    "no transform": (config(lambda c: c["memssl"].pop("transform")), "config.json.*transform"),
    "vast transform": (config(lambda c: c["memssl"]["transform"].update(resize_px=10**6)), "config.json.*transform"),
    "odd transform": (config(lambda c: c["memssl"]["transform"].update(interpolation="x")), "config.json.*transform"),
    "no deviation": (config(lambda c: c["memssl"]["transform"].update(std=[0, 1, 1])), "config.json.*transform"),
    "other slots": (config(lambda c: c["memssl"]["memory"].update(slots=51)), "memory.safetensors has 50 slots"),
    "text as weights": (text("model.safetensors", "hello there, no header"), "model.safetensors"),
    "missing tensor": (tensors("model.safetensors", lambda s: {k: s[k] for k in s if k != "cls_token"}), "cls_token"),
    "extra tensor": (tensors("model.safetensors", lambda s: s | {"aside": torch.ones(1)}), "model.*surplus.*aside"),
    "misshapen tensor": (
        tensors("head.safetensors", lambda s: s | {"mlp.0.bias": torch.ones(3)}),
        r"head.safetensors has tensor 'mlp.0.bias' of shape \[3\]",
    ),
    "nan": (tensors("model.safetensors", fill("norm.weight", torch.nan)), "model.*not finite.*norm.weight"),
    "inf in student": (tensors("student.safetensors", fill("head.mlp.0.bias", torch.inf)), "student.*not finite"),
    "integers": (tensors("model.safetensors", lambda s: s | {"norm.bias": torch.ones(32).int()}), "model.*int32"),
    "not unit": (tensors("memory.safetensors", lambda s: s | {"vectors": 1.1 * s["vectors"]}), "memory.*unit length"),
    "nan vectors": (tensors("memory.safetensors", fill("vectors", torch.nan)), "memory.safetensors.*unit length"),
    "narrow vectors": (
        tensors("memory.safetensors", lambda s: s | {"vectors": torch.eye(16)[:, :8].repeat(4, 1)[:50].half()}),
        "memory.safetensors",
    ),
    "cursor": (tensors("memory.safetensors", fill("cursor", SLOTS)), "memory.safetensors has cursor 50"),
    "no cursor": (tensors("memory.safetensors", lambda s: {k: s[k] for k in s if k != "cursor"}), "memory.*cursor"),
    "embeddings": (
        tensors("memory.safetensors", lambda s: s | {"embeddings": s["embeddings"][:, 1:].clone()}),
        "memory.safetensors has embeddings",
    ),
    "nan embeddings": (tensors("memory.safetensors", fill("embeddings", torch.nan)), "memory.*not finite"),
    "text as table": (text("memory.parquet", "hello"), "memory.parquet"),
    "fewer rows": (table(lambda rows: rows.slice(1)), "memory.parquet has 49 rows for 50 slots"),
    "no column": (table(lambda rows: rows.drop_columns(["step"])), "memory.parquet"),
    "shuffled": (table(column("slot", range(SLOTS)[::-1])), "memory.parquet.*order"),
    "null ids": (table(column("image_id", [None] * SLOTS)), "memory.parquet"),
    "ids as words": (table(column("image_id", ["a"] * SLOTS)), "memory.parquet"),
    "box": (table(column("x1", [3.0] * SLOTS)), "memory.parquet.*crop boxes"),
    "nan box": (table(column("x1", [float("nan")] * SLOTS)), "memory.parquet.*crop boxes"),
    "fat thumbnails": (table(column("thumbnail", FAT)), "memory.parquet.*4096 bytes"),
}


@pytest.mark.parametrize("spoil, sentence", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_file(copy, spoil, sentence):
    spoil(copy)
    with pytest.raises(BundleError, match=sentence) as caught:
        open_bundle(copy)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and str(copy.parent) not in message


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match="no bundle folder named absent"):
        open_bundle(tmp_path / "absent")


def test_nothing_is_unpickled(copy, monkeypatch):
    for name in ("pickle.load", "pickle.loads", "torch.load"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("unpickled"))
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")
    open_bundle(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="model.safetensors is missing"):
        open_bundle(copy)


FAMILIES = {
    "registers": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 3, "reg_tokens": 2}),
    "rotary": ("vit_small_patch16_dinov3", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "convolutional": ("resnet10t", {}),
    "hierarchical": ("swin_tiny_patch4_window7_224", {}),
}


@pytest.mark.parametrize("architecture, args", FAMILIES.values(), ids=FAMILIES)
def test_a_bundle_of_any_family_opens_here_and_in_timm(tmp_path, architecture, args):
    torch.manual_seed(0)
    model = create_backbone(architecture, **args).eval()
    rows = np.eye(embedding_width(model), dtype=np.float32)[:5]
    memory = MemoryTable(
        vectors=rows,
        cursor=0,
        written=5,
        image_id=np.arange(5),
        uri=[None] * 5,
        label=np.full(5, -1),
        class_name=[None] * 5,
        step=np.zeros(5),
        box=np.tile([0, 0, 1, 1], (5, 1)),
        thumbnails=[b""] * 5,
    )
    config = bundle_config(architecture, model, args, transform=Transform(256, 224), memory_slots=5)
    assert config["memssl"]["memory"]["space"] == "embedding"
    Bundle(config=config, backbone=model.state_dict(), memory=memory).save(tmp_path / "b")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = model(pixels)
        torch.testing.assert_close(open_bundle(tmp_path / "b").make_backbone()(pixels), expected)
        plain = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()
        torch.testing.assert_close(plain(pixels), expected)


@pytest.mark.parametrize("name, fixed", [("cait_xxs24_224", True), ("swin_tiny_patch4_window7_224", False)])
def test_timm_is_told_which_models_take_one_size_only(name, fixed):
    with torch.device("meta"):
        config = bundle_config(name, create_backbone(name), {}, transform=Transform(224, 224))
    assert config["pretrained_cfg"]["fixed_input_size"] is fixed


def test_a_model_that_uses_a_tensor_twice_is_saved(tmp_path):
    torch.manual_seed(0)
    model = create_backbone("test_convnext").eval()
    convolutions: Any = {tuple(m.weight.shape): m for m in model.modules() if isinstance(m, torch.nn.Conv2d)}
    twin = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m not in convolutions.values())
    twin.weight = convolutions[tuple(twin.weight.shape)].weight
    config = bundle_config("test_convnext", model, {}, transform=Transform(160, 160))
    Bundle(config=config, backbone=model.state_dict()).save(tmp_path / "b")
    pixels = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(open_bundle(tmp_path / "b").make_backbone()(pixels), model(pixels))


def test_the_way_of_the_positions_is_kept(tmp_path):
    bundle = small_bundle()
    pixels = torch.randn(1, 3, 32, 80)
    found = []
    for positions in ("timm", "original"):
        bundle.config["memssl"]["positions"] = positions
        bundle.save(tmp_path / positions)
        with torch.inference_mode():
            found.append(open_bundle(tmp_path / positions).make_backbone()(pixels))
    assert not torch.allclose(*found, rtol=1e-3)
    bundle.config["memssl"]["positions"] = "mine"
    with pytest.raises(BundleError, match="positions 'mine'"):
        bundle.save(tmp_path / "mine")

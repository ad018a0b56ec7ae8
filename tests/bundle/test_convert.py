"""Official checkpoints become bundles with the same numbers, or are refused by name; nothing in a file ever runs."""

from __future__ import annotations

import argparse
import io
import pickle
from fractions import Fraction

import numpy as np
import pytest
import safetensors.torch
import torch
from bundle.checkpoints import DIM, HIDDEN, LAYOUTS, SLOTS, TINY, flat, massl, massl_head, mocov3, vit
from torch.nn import functional as F

from memssl_core.bundle.convert import FAMILIES, caution, convert
from memssl_core.bundle.layout import open_bundle
from memssl_core.errors import ModelError
from memssl_core.model.positions import original_positions

# MAE writes the epoch's number, counted from 0; the others how many are done.
EPOCHS_DONE = {"mocov3": 300, "mae training": 400, "dino backbone": None, "ibot backbone": None, "mae released": None}


@pytest.fixture(scope="module")
def backbone():
    return vit()


@pytest.fixture
def write(tmp_path):
    def to_file(checkpoint, name="checkpoint.pth", **how):
        torch.save(checkpoint, tmp_path / name, **how)
        return tmp_path / name

    return to_file


def made(layout, backbone):
    """A checkpoint, and what `convert` must be told of it: tiny MoCo-v3 and MAE models are nobody's official ones."""
    family, lay_out = LAYOUTS[layout]
    return lay_out(backbone), {"architecture": TINY} if family in ("mocov3", "mae") else {}


def weights_in(checkpoint):
    """The mapping that holds the backbone, and the prefix of its names, from METHOD.md 8's table."""
    state = next((checkpoint[entry] for entry in ("teacher", "state_dict", "model") if entry in checkpoint), checkpoint)
    prefixes = ("module.base_encoder.", "module.backbone.", "backbone.", "")
    return state, next(prefix for prefix in prefixes if f"{prefix}norm.weight" in state)


def refusal(file, **told):
    with pytest.raises(ModelError) as caught:
        convert(file, **told)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and str(file.parent) not in sentence
    return sentence


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_equal_the_same_weights_in_plain_timm(layout, backbone, write):
    checkpoint, told = made(layout, backbone)
    family = LAYOUTS[layout][0]
    bundle = convert(write(checkpoint), dtype="f32", **told)
    state, prefix = weights_in(checkpoint)
    plain = vit(seed=1)
    plain.load_state_dict({key: state[prefix + key] for key in plain.state_dict()})
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        tokens = bundle.make_backbone().forward_features(pixels)
        torch.testing.assert_close(tokens, plain.forward_features(pixels), rtol=0, atol=1e-6)
    ours = bundle.config["memssl"]
    assert ours["positions"] == ("timm" if family in ("mocov3", "mae") else "original")
    assert ours["transform"] | {"resize_px": 256, "crop_px": 224, "interpolation": "bicubic"} == ours["transform"]
    assert ours["transform"]["mean"] == [0.485, 0.456, 0.406] and ours["transform"]["std"] == [0.229, 0.224, 0.225]
    assert ours["provenance"]["family"].startswith(family) and ours["provenance"]["source"] == "checkpoint.pth"
    assert "license" not in ours["provenance"] and ours["provenance"].get("epochs") == EPOCHS_DONE.get(layout, 800)


def test_only_the_families_that_were_trained_so_interpolate_as_the_original(backbone, write):
    """A 64 px picture: the table each bundle really uses, against the original rule and against timm's."""
    pixels = torch.randn(1, 3, 64, 64)
    found = {}
    for layout in ("dino full", "mae training"):
        checkpoint, told = made(layout, backbone)
        opened = convert(write(checkpoint), dtype="f32", **told).make_backbone()
        cells = opened.patch_embed(pixels)
        tokens = opened._pos_embed(cells)
        cls, table = opened.cls_token, opened.pos_embed
        original = torch.cat([cls, cells.flatten(1, 2)], 1) + original_positions(table, 4, 4)
        found[layout] = torch.allclose(tokens, original, atol=1e-5)
    assert found == {"dino full": True, "mae training": False}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_renamed_tensor_is_refused_by_its_name(layout, backbone, write):
    checkpoint, told = made(layout, backbone)
    state, prefix = weights_in(checkpoint)
    state[f"{prefix}blocks.3.attn.query.weight"] = state.pop(f"{prefix}blocks.3.attn.qkv.weight")
    sentence = refusal(write(checkpoint), **told)
    assert f"'{prefix}blocks.3.attn.query.weight'" in sentence and f"'{prefix}blocks.3.attn.qkv.weight'" in sentence


@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.weight", "norm.weight", "cls_token"])
def test_a_missing_tensor_that_tells_sizes_is_refused_by_its_name_too(name, backbone, write):
    state = backbone.state_dict()
    state[f"x.{name}"] = state.pop(name)
    sentence = refusal(write(state))
    assert f"'{name}'" in sentence and f"'x.{name}'" in sentence


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_renamed_tensor_of_a_head_is_refused_by_its_name(network, which, backbone, write):
    checkpoint, _ = made("massl", backbone)
    state = checkpoint[network]
    name = sorted(key for key in state if "head." in key)[which]
    state[name + "s"] = state.pop(name)
    assert f"{name}s'" in refusal(write(checkpoint))


def test_a_depth_that_is_not_the_published_one_is_refused(backbone, write):
    state = {key: value for key, value in backbone.state_dict().items() if not key.startswith("blocks.11.")}
    assert "'blocks.11." in refusal(write(state))


def test_moco_v3_small_has_twelve_attention_heads_and_six_would_load_and_be_wrong(write):
    small = "vit_small_patch16_224"
    twelve = vit(small, num_heads=12)
    checkpoint = mocov3(twelve)
    bundle = convert(write(checkpoint), dtype="f32")
    assert (bundle.config["architecture"], bundle.config["model_args"]["num_heads"]) == (small, 12)
    assert bundle.config["memssl"]["provenance"]["family"] == "mocov3"
    six = vit(small)
    for model in (twelve, six):
        model.load_state_dict(bundle.backbone, strict=True)  # silent for both
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        right, wrong, ours = (model.forward_features(pixels) for model in (twelve, six, bundle.make_backbone()))
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-6)
    assert (wrong - right).norm() / right.norm() > 0.01
    assert not bundle.backbone["pos_embed"][0, 0].any()  # the fixed table of the file, not one made anew


class Payload:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("writer", [torch.save, lambda what, file: file.write_bytes(pickle.dumps(what, 2))])
def test_a_pickled_function_is_refused_and_never_called(writer, backbone, tmp_path):
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(ran))).close()
    assert ran.exists()  # the payload works
    ran.unlink()
    writer({"extra": Payload(ran), "state_dict": backbone.state_dict()}, tmp_path / "evil.pth")
    sentence = refusal(tmp_path / "evil.pth")
    assert not ran.exists() and "evil.pth" in sentence and "open'" in sentence and "nothing in it ran" in sentence


def test_numpy_numbers_of_the_optimizer_are_passed_over(backbone, write, monkeypatch):
    checkpoint, _ = made("dino full", backbone)
    checkpoint["optimizer"]["param_groups"][0]["lr"] = np.float64(1e-6)  # as the official schedules leave it there
    file = write(checkpoint)
    monkeypatch.setattr(np._core.multiarray, "scalar", lambda *_: pytest.fail("NumPy's code ran"))
    assert convert(file).config["architecture"]
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_pickled_class_that_is_not_known_is_refused_with_what_to_do(backbone, write):
    checkpoint, _ = made("dino full", backbone)
    checkpoint["optimizer"]["param_groups"][0]["lr"] = Fraction(1, 3)
    sentence = refusal(write(checkpoint))
    assert "fractions.Fraction" in sentence and "no optimizer" in sentence and ".safetensors" in sentence


@pytest.mark.parametrize("batch_norm", [False, True])
def test_massl_keeps_head_student_and_memory(batch_norm, backbone, write, tmp_path):
    checkpoint = massl(backbone, batch_norm=batch_norm)
    bundle = convert(write(checkpoint), dtype="f32")
    bundle.save(tmp_path / "bundle")
    again = open_bundle(tmp_path / "bundle")
    memory, ours = again.memory, again.config["memssl"]
    queue = checkpoint["memory_bank"]["queue"]
    for slot in range(SLOTS):
        np.testing.assert_allclose(memory.vectors[slot], queue[:, slot], atol=1e-3)
    assert (memory.slots, memory.cursor, memory.written % SLOTS) == (SLOTS, 12, 12) and memory.written >= SLOTS
    assert (memory.image_id == -2).all() and (memory.label == -1).all() and (memory.box == [0, 0, 1, 1]).all()
    assert memory.uri.null_count == memory.thumbnails.null_count == SLOTS and memory.embeddings is None
    assert (ours["memory"]["slots"], ours["memory"]["block_size"]) == (SLOTS, 8)
    assert ours["temperatures"] == {"student": 0.1, "teacher": 0.07}

    embeddings, head = torch.randn(5, backbone.num_features), massl_head(backbone.num_features, batch_norm=batch_norm)
    rows = embeddings
    for linear in (0, 3, 6) if batch_norm else (0, 2, 4):
        rows = rows @ head[f"mlp.{linear}.weight"].T + head[f"mlp.{linear}.bias"]
        if rows.shape[1] == DIM:
            break
        if batch_norm:
            rows = (rows - head[f"mlp.{linear + 1}.running_mean"]) / (1 + 1e-5) ** 0.5
        rows = F.gelu(rows)
    wanted = rows / rows.norm(dim=1, keepdim=True)
    student_backbone, student_head = again.make_student()
    assert again.make_head().hidden_dim == HIDDEN
    torch.testing.assert_close(again.make_head()(embeddings), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student_head(embeddings), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student_backbone.norm.weight, backbone.norm.weight + 0.01)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"queue": torch.randn(SLOTS, DIM)}, "columns of length 16"),
        ({"queue": 2 * F.normalize(torch.randn(DIM, SLOTS), dim=0)}, "unit length"),
        ({"queue_ptr": torch.tensor([SLOTS])}, "pointer"),
        ({"queue": F.normalize(torch.randn(DIM, 1), dim=0).expand(DIM, 10**12)}, "does not store"),
        ({"queue_ptr": torch.tensor([torch.inf])}, "pointer"),
        ({"keys": torch.zeros(1)}, "keys"),
    ],
)
def test_a_memory_that_cannot_be_one_is_refused(change, told, backbone, write):
    checkpoint = massl(backbone)
    checkpoint["memory_bank"] |= change
    assert told in refusal(write(checkpoint))


def test_layouts_that_several_families_share_say_so(backbone, write):
    file = write(backbone.state_dict())
    provenance = convert(file).config["memssl"]["provenance"]
    assert provenance["family"] == "dino or another with its layout" and "--family" in provenance["note"]
    assert "epochs" not in provenance
    for family in FAMILIES:
        provenance = convert(file, family=family, architecture=TINY).config["memssl"]["provenance"]
        assert provenance["family"] == family and "note" not in provenance
    bare = {"teacher": made("dino full", backbone)[0]["teacher"]}
    assert "dino or another" in convert(write(bare)).config["memssl"]["provenance"]["family"]


@pytest.mark.parametrize("layout", ["massl", "dino full", "ibot full", "mocov3", "mae training"])
def test_a_layout_of_one_family_is_not_taken_for_another(layout, backbone, write):
    checkpoint, told = made(layout, backbone)
    file, family = write(checkpoint), LAYOUTS[layout][0]
    assert convert(file, **told).config["memssl"]["provenance"]["family"] == family
    other = next(name for name in FAMILIES if name != family)
    assert "--family" in refusal(file, family=other, **told)


def test_sizes_nobody_published_need_the_architecture_in_words(backbone, write):
    for layout in ("mae training", "mocov3"):
        checkpoint, _ = made(layout, backbone)
        assert f"--arch {TINY}" in refusal(write(checkpoint))


@pytest.mark.parametrize("arch", ["resnet50", "vit_conv_small", "swin_tiny", "mae_vit_huge_patch14", "vit_base"])
def test_other_architectures_are_refused(arch, backbone, write):
    checkpoint, _ = made("ibot full", backbone)
    checkpoint["args"].arch = arch
    sentence = refusal(write(checkpoint))
    assert arch in sentence
    assert "vit_tiny" in convert(write(checkpoint), architecture="vit_tiny").config["architecture"]


def test_a_convolutional_stem_and_other_widths_are_refused(backbone, write):
    checkpoint, told = made("mocov3", backbone)
    state, prefix = weights_in(checkpoint)
    state[f"{prefix}patch_embed.proj.0.weight"] = torch.zeros(24, 3, 3, 3)
    assert "convolutional stem" in refusal(write(checkpoint), **told)
    assert "width 64" in refusal(write(vit(embed_dim=64, num_heads=1, depth=1).state_dict()))


def test_patch_and_picture_size_come_from_the_shapes(write):
    other = vit(patch_size=8, img_size=64)
    bundle = convert(write(other.state_dict()), dtype="f32")
    assert bundle.config["model_args"] | {"patch_size": 8, "img_size": 64} == bundle.config["model_args"]
    assert bundle.make_transform().crop_px == 64
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(bundle.make_backbone()(pixels), other(pixels), rtol=0, atol=1e-6)
    assert "[1, 197, 192]" in refusal(write(other.state_dict()), architecture="vit_tiny_patch16_224")
    assert "pos_embed" in refusal(write(other.state_dict()), architecture="vit_tiny_patch8_96")


@pytest.mark.parametrize("layout", ["massl", "dino backbone", "ibot full", "mocov3", "mae released"])
def test_the_same_tensors_as_safetensors(layout, backbone, write, tmp_path):
    checkpoint, told = made(layout, backbone)
    safetensors.torch.save_file(flat(checkpoint), tmp_path / "checkpoint.safetensors")
    ours, theirs = convert(tmp_path / "checkpoint.safetensors", **told), convert(write(checkpoint), **told)
    assert ours.model_hash == theirs.model_hash
    assert ours.config["memssl"]["provenance"]["family"] == theirs.config["memssl"]["provenance"]["family"]
    assert (ours.memory is None) == (theirs.memory is None) and (ours.student is None) == (theirs.student is None)


def test_files_from_before_zip_and_bundles_that_outlive_their_file(backbone, write):
    old = write(backbone.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
    assert convert(old).model_hash == convert(new := write(backbone.state_dict())).model_hash
    bundle = convert(new, dtype="f32")
    new.write_bytes(bytes(new.stat().st_size))
    for key, value in backbone.state_dict().items():
        assert torch.equal(bundle.backbone[key], value)
    assert all(value.dtype == torch.float16 for value in convert(old).backbone.values())


def test_values_that_cannot_be_kept_are_refused_with_their_tensor(backbone, write):
    state = backbone.state_dict()
    state["norm.bias"] = state["norm.bias"] + 1e5
    file = write(state)
    assert "'norm.bias'" in (sentence := refusal(file)) and "--dtype f32" in sentence
    assert convert(file, dtype="f32").backbone["norm.bias"].min() > 9e4
    state["norm.bias"][0] = torch.nan
    assert "not finite" in refusal(write(state), dtype="f32")
    state["pos_embed"] = torch.zeros(1).expand(1, 197, 192)  # claims more than the file holds
    assert "'pos_embed'" in refusal(write(state))


@pytest.mark.parametrize(
    "top",
    [
        {},
        [],
        torch.zeros(3),
        {"epoch": 3, "net": {}},
        {"state_dict": {"x": 3}},
        {"teacher": {}},
        {"teacher": 3, "dino_loss": {}},
        {1: torch.zeros(3)},
        {"state_dict": {"norm.weight": torch.zeros(())}},
        {"norm.weight": torch.zeros(192), "patch_embed.proj.weight": torch.zeros(192, 3, 0, 0)},
        {"norm.weight": torch.zeros(192), "pos_embed": torch.zeros(1, 1).expand(192, 10**12).T[None]},
        {"norm.weight": torch.zeros(192).to_sparse()},
        {"memory_bank": {}, "teacher": {"norm.weight": torch.zeros(192), "mlp.0.weight": torch.zeros(2, 192)}},
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_is_no_such_checkpoint_is_one_sentence(top, write):
    refusal(write(top))


def test_unreadable_files_are_one_sentence(backbone, tmp_path):
    buffer = io.BytesIO()
    torch.save(backbone.state_dict(), buffer)
    files = {"cut.pth": buffer.getvalue()[:100_000], "words.pth": b"hello", "empty.pth": b"", "x.safetensors": b"no"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert name in refusal(tmp_path / name)
    assert "is no file" in refusal(tmp_path / "absent.pth") and "is no file" in refusal(tmp_path)


def test_only_files_that_could_carry_code_come_with_a_warning():
    assert caution("folder/vit.safetensors") is None
    for name in ("vit.pth", "vit.pth.tar", "vit.safetensors.pth"):
        assert (told := caution(f"folder/{name}")) and name in told and "folder" not in told


def test_arguments_in_the_file_that_are_of_odd_types_are_not_used(backbone, write):
    checkpoint = massl(backbone)
    odd = {"arch": torch.zeros(2), "student_temp": 10**400, "teacher_temp": "hot", "partition_size": 0.5}
    vars(checkpoint["args"]).update(odd)
    checkpoint["epoch"] = [3]
    ours = convert(write(checkpoint)).config["memssl"]
    assert ours["temperatures"] == {"student": None, "teacher": None} and ours["memory"]["block_size"] is None
    assert "epochs" not in ours["provenance"] and ours["provenance"]["architecture"] == TINY


def test_unknown_words_are_refused(backbone, write):
    file = write(backbone.state_dict())
    assert "massl, dino, ibot, mocov3, mae" in refusal(file, family="swav")
    assert "f16, f32" in refusal(file, dtype="int8")
    assert "--arch" not in refusal(file, architecture="resnet50")

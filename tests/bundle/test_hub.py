"""Bundles and plain timm models to a Hub on this machine and back: by revision, cut off, damaged, refused, offline."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from bundle.making import SLOTS, small_bundle
from hub_server import TOKEN, Client, Refused, serve_hub
from timm.models import save_for_hf

from memssl_core.bundle.card import card
from memssl_core.bundle.hub import publish
from memssl_core.bundle.layout import open_bundle
from memssl_core.errors import BundleError, HubError

TIMM = "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "small"
    bundle = small_bundle()
    replace(bundle, readme=card(bundle.config)).save(folder)
    (folder / "notes.txt").write_text("not for others")
    (folder / "map.parquet").write_bytes(b"a map")  # read and checked when it is shown
    return folder


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Its home is empty at first; the tests below share it."""
    client = Client(tmp_path_factory.mktemp("hf"), hub.endpoint)
    yield client
    client.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A timm model with a classifier, as timm saves it."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(5)
    model = timm.create_model("test_vit", num_classes=10).eval()
    save_for_hf(model, folder, safe_serialization=True)
    return folder, model


def expected(model):
    side = model.pretrained_cfg["input_size"][-1]
    pixels = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
    return model.forward_head(model.forward_features(pixels), pre_logits=True).detach().numpy()


# --- sending


def test_a_dry_run_names_the_bundles_own_files_and_sends_nothing(folder):
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    told = publish(folder, "owner/dry", dry_run=True)  # in this process, which is offline
    assert told.url is None and told.private
    assert {name for name, _ in told.files} == before.keys() - {"notes.txt"}
    assert all(size == before[name] for name, size in told.files if name != "README.md")
    assert not publish(folder, "owner/dry", dry_run=True, public=True).private


@pytest.mark.parametrize("repo", ["owner", "a/b/c", "../x", "owner/", "own er/x"])
def test_a_name_that_is_none_on_the_hub(folder, repo):
    with pytest.raises(HubError, match="write OWNER/NAME"):
        publish(folder, repo, dry_run=True)


def test_a_broken_bundle_is_not_sent(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "memory.parquet").unlink()
    with pytest.raises(BundleError, match="memory.parquet is missing"):
        publish(tmp_path / "b", "owner/broken", dry_run=True)


def test_publishing_without_a_network_says_so(folder):
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set. Nothing was published"):
        publish(folder, "owner/offline")


def test_published_private_then_opened_by_revision(hub, client, folder, tmp_path):
    told = client("publish", str(folder), "owner/small", token=TOKEN)
    assert told["url"] == f"{hub.endpoint}/owner/small" and told["private"] and hub.repos["owner/small"].private
    first = list(hub.repos["owner/small"].commits)[-1]
    sent = hub.repos["owner/small"].commits[first]
    assert sent.keys() - {".gitattributes"} == {name for name, _ in told["files"]}
    assert 'open_model("hub:owner/small")' in sent["README.md"].decode()
    assert all(sent[name] == (folder / name).read_bytes() for name in sent.keys() - {".gitattributes", "README.md"})

    other = tmp_path / "other"
    bundle = small_bundle(seed=9, with_memory=False)
    bundle.save(other)
    client("publish", str(other), "owner/small", token=TOKEN)
    now = list(hub.repos["owner/small"].commits.values())[-1]
    assert "map.parquet" in sent and not {"map.parquet", "memory.parquet", "memory.safetensors"} & now.keys()

    with pytest.raises(Refused, match="The Hub has no model owner/small, or it is private.*HF_TOKEN"):
        client("open", "hub:owner/small")
    old = client("open", f"hub:owner/small@{first}", token=TOKEN)
    new = client("open", "hub:owner/small", token=TOKEN)
    assert old["hash"] == open_bundle(folder).model_hash and new["hash"] == bundle.model_hash
    assert old["card"]["memory_slots"] == SLOTS and new["card"]["memory_slots"] == 0
    assert (old["card"]["repository"], old["card"]["revision"]) == ("owner/small", first)
    assert client("state", "hub:owner/small") == new["card"]["revision"] != first


def test_a_public_repository_is_not_written_to_by_accident(hub, client, folder):
    client("publish", str(folder), "owner/open", public=True, token=TOKEN)
    assert not hub.repos["owner/open"].private
    with pytest.raises(Refused, match="is public; say --public"):
        client("publish", str(folder), "owner/open", token=TOKEN)
    with pytest.raises(Refused, match="does not let you write to owner/open; set HF_TOKEN|write to owner/open"):
        client("publish", str(folder), "owner/open", public=True)


# --- fetching


def test_what_is_not_there_and_what_may_not_be_read(hub, client, folder):
    hub.add("owner/gated", folder, gated=True)
    for source, sentence in {
        "hub:owner/none": "The Hub has no model owner/none",
        "hub:owner/open@v9": "owner/open has no revision v9",
        "hub:owner/open@../../x": "cannot have such a revision",
        "hub:just-a-name": "write OWNER/NAME",
        "hub:owner/gated": "owner/gated is gated: accept its licence at .*/owner/gated, then set HF_TOKEN",
    }.items():
        with pytest.raises(Refused, match=sentence):
            client("open", source)
    assert client("open", "hub:owner/gated", token=TOKEN)["name"] == "small"


def test_pickled_weights_from_strangers_are_refused_unopened(hub, client, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"harmless": 1}))
    hub.add("owner/pickled", tmp_path)
    with pytest.raises(Refused, match="only as pytorch_model.bin, a pickled file, which could run code and is never"):
        client("open", "hub:owner/pickled")
    assert hub.downloads("pytorch_model.bin") == []


def test_a_repository_of_another_kind_is_refused_before_its_weights_are_fetched(hub, client, tmp_path, plain):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes((plain[0] / "model.safetensors").read_bytes())
    hub.add("owner/bert", tmp_path)
    hub.requests.clear()
    with pytest.raises(Refused, match="neither a bundle nor a timm model"):
        client("fetch", "hub:owner/bert")
    assert hub.downloads("model.safetensors") == []


def test_a_download_that_is_cut_off_goes_on_in_the_same_call(hub, client, plain):
    hub.add("owner/plain", plain[0])
    hub.requests.clear()
    hub.cut.add("model.safetensors")
    assert not client("is_cached", "hub:owner/plain")
    told = client("fetch", "hub:owner/plain")
    size = (plain[0] / "model.safetensors").stat().st_size
    assert hub.downloads("model.safetensors") == ["bytes=0-", f"bytes={size // 2}-"]
    assert client("is_cached", "hub:owner/plain")
    steps = [event["step"] for event in told]
    assert steps == sorted(steps) and steps[-1] == told[-1]["total"] >= size
    assert "model.safetensors" in told[-1]["words"] and told[-1]["event"] == "progress"


def test_a_plain_timm_repository_is_a_model_without_memory(client, plain):
    opened = client("open", "hub:owner/plain")
    np.testing.assert_allclose(opened["embedding"], expected(plain[1]), rtol=1e-5, atol=1e-6)
    card = opened["card"]
    assert (card["memory_slots"], card["family"], card["architecture"]) == (0, "tokens", "test_vit")


def test_a_stopped_download_keeps_what_has_come_and_goes_on(hub, client, plain):
    """Progress while loading, a way to stop, and no byte fetched twice."""
    hub.add("timm/" + TIMM, plain[0])
    source = f"timm:{TIMM}"
    size = (plain[0] / "model.safetensors").stat().st_size
    hub.requests.clear()
    with pytest.raises(Refused, match="Stopped. Fetch it again to go on where it was"):
        client("fetch", source, stop_after=size // 3)
    assert not client("is_cached", source)
    hub.is_down = True
    with pytest.raises(Refused, match=f"does not answer. timm/{TIMM} is only in part.*memssl_core fetch timm:{TIMM}"):
        client("open", source)
    hub.is_down = False
    told = client("fetch", source)
    begun, gone_on = hub.downloads("model.safetensors")[0], hub.downloads("model.safetensors")[-1]
    assert begun == "bytes=0-" and int(gone_on[6:-1]) >= size // 3
    assert told[0]["step"] >= size // 3 and told[-1]["step"] == size == told[-1]["total"]


def test_a_damaged_download_is_thrown_away(hub, client, plain):
    hub.add("owner/damaged", plain[0])
    hub.damaged.add("model.safetensors")
    with pytest.raises(Refused, match="model.safetensors of owner/damaged arrived damaged and was thrown away"):
        client("open", "hub:owner/damaged")
    hub.damaged.clear()
    assert client("open", "hub:owner/damaged")["name"] == "owner/damaged"


def test_a_hostile_config_is_refused_by_the_rules_for_bundles(hub, client, plain, tmp_path):
    shutil.copytree(plain[0], tmp_path / "r")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    config["model_args"] = {"checkpoint_path": "/etc/passwd"}
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    hub.add("owner/hostile", tmp_path / "r")
    with pytest.raises(Refused, match="checkpoint_path='/etc/passwd' in model_args, which bundles may not set"):
        client("open", "hub:owner/hostile")


def test_timm_weights_pass_timms_own_loading(client, plain):
    opened = client("open", f"timm:{TIMM}")
    np.testing.assert_allclose(opened["embedding"], expected(plain[1]), rtol=1e-5, atol=1e-6)
    assert (opened["name"], opened["card"]["repository"]) == (TIMM, f"timm/{TIMM}")
    assert client("open", "timm:test_vit")["hash"] == opened["hash"]  # timm's default weights are these
    with pytest.raises(Refused, match="timm has no weights test_vit.nothing on the Hub; it has test_vit.r160_in1k"):
        client("open", "timm:test_vit.nothing")


def test_without_a_network_the_cache_serves_and_the_rest_is_explained(hub, client):
    hub.is_down = True
    assert client("open", "hub:owner/plain")["name"] == "owner/plain"
    with pytest.raises(Refused, match="does not answer. owner/new is not in its cache.*fetch hub:owner/new"):
        client("open", "hub:owner/new")
    hub.is_down = False


def test_offline_the_cache_serves_and_nothing_is_asked(hub, client):
    """Config and weights come from this machine alone; what is missing is said with the way to bring it."""
    online = {source: client("open", source)["hash"] for source in ("hub:owner/plain", f"timm:{TIMM}")}
    offline = Client(client.home, hub.endpoint, offline=True)
    hub.requests.clear()
    try:
        for source in online:
            assert offline("open", source)["hash"] == online[source]
        assert offline("open", "hub:owner/small")["card"]["name"] == "small"
        with pytest.raises(
            Refused, match="HF_HUB_OFFLINE is set. owner/new is not in its cache here: run .*fetch hub:"
        ):
            offline("open", "hub:owner/new")
        listed = {entry["source"]: entry for entry in offline("catalogue")}
    finally:
        offline.close()
    assert hub.requests == []
    assert {*online, "hub:owner/small"} <= listed.keys()
    assert not {"hub:owner/bert", "hub:owner/pickled", "hub:owner/gated@main"} & listed.keys()
    assert all(listed[source]["cached"] and listed[source]["nbytes"] > 0 for source in online)

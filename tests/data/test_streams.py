from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from data.painting import encoded, number_of, paint
from data.test_shards import shard
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.data import hub_data
from memssl_core.data.datasets import open_images
from memssl_core.data.hub_data import HubRows
from memssl_core.data.streams import Item, open_stream
from memssl_core.errors import ImageError

NAMES = ("tree", "cat")


def hub_rows(spec: str) -> HubRows:
    """`hf:any/COUNT`: rows as the Hub streams them, of nobody-knows-how-many pictures."""
    count = int(spec.rpartition("/")[2])
    rows = [{"image": {"bytes": encoded(i), "path": f"{i}.png"}, "label": i % 3 - 1} for i in range(count)]
    return HubRows(spec, spec[3:], rows, "image", "label", NAMES, ("not.a.table",), None)


def facts(item: Item) -> tuple:
    return item.image_id, item.uri, item.label, item.class_name


@given(count=st.integers(1, 40), parts=st.integers(1, 12))
def test_parts_are_neighbours_and_together_everything(count: int, parts: int):
    stream = open_stream(f"drawn:1:{count}:16")
    cut = [[item.image_id for item in stream.items(part, parts)] for part in range(parts)]
    assert [image_id for part in cut for image_id in part] == [*range(count)]
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert stream.count == count


sources = st.lists(
    st.one_of(st.integers(1, 9).map("drawn:1:{}:16".format), st.integers(0, 9).map("hf:any/{}".format)),
    min_size=1,
    max_size=4,
)


@given(sources=sources, parts=st.integers(1, 5))
def test_parts_of_joined_and_unknown_lengths_are_disjoint_and_complete(sources: list[str], parts: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_data, "open_hub_rows", hub_rows)
        stream = open_stream("+".join(sources))
        whole = [facts(item) for item in stream.items()]
        cut = [facts(item) for part in range(parts) for item in stream.items(part, parts)]
    lengths = [int(source.split(":")[2]) if source.startswith("drawn") else int(source[7:]) for source in sources]
    assert [image_id for image_id, *_ in whole] == [*range(sum(lengths))]
    assert sorted(cut, key=lambda facts: facts[0]) == whole
    assert stream.count == (None if any(source.startswith("hf") for source in sources) else sum(lengths))
    for _, _, label, class_name in whole:
        assert class_name == (None if label is None else stream.class_names[label])  # type: ignore[index]


def local_sources(folder: Path) -> list[str]:
    paint(folder, "files/cat/a.png", "files/dog/b.png", "files/dog/c.png")
    wds = shard(folder / "a.tar", ("0.png", encoded(5)), ("0.cls", b"1"), ("1.png", encoded(6)))
    return [str(folder / "files"), wds, "drawn:1:3:16", f"{wds}+{folder / 'files'}"]


def test_a_stream_is_the_list_in_order(tmp_path: Path):
    for spec in local_sources(tmp_path):
        images, stream = open_images(spec), pickle.loads(pickle.dumps(open_stream(spec)))
        expected = [(i, images.uris[i], images.label(i), images.class_name(i)) for i in range(len(images))]
        assert [facts(item) for item in stream.items()] == expected
        assert (stream.count, stream.class_names) == (len(images), images.class_names)
        for item in stream.items(1, 2):
            assert item.read().tobytes() == images.read(item.image_id).tobytes()


def test_an_item_names_itself_when_it_cannot_be_read(tmp_path: Path):
    paint(tmp_path, "a.png", "b.png")
    first, second = open_stream(str(tmp_path)).items()
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="^a.png: This is not a picture"):
        first.read()
    assert number_of(second.read) == 1


def test_what_was_left_out_is_told(tmp_path: Path):
    (tmp_path / "b.tar").write_bytes(b"junk" * 1000)
    shard(tmp_path / "a.tar", ("0.png", encoded(0)))
    assert open_stream(f"wds:{tmp_path}+drawn:1:2:16").notes == open_images(f"wds:{tmp_path}").notes != ()


@pytest.mark.parametrize(("part", "parts"), [(1, 1), (-1, 2), (0, 0)])
def test_there_is_no_such_part(part: int, parts: int):
    with pytest.raises(ValueError):
        open_stream("drawn:1:3:16").items(part, parts)


def test_importing_the_doors_loads_no_heavy_library():
    script = (
        "import sys, memssl_core, memssl_core.cli, memssl_core.data.streams, memssl_core.data.hub_data\n"
        "print(sorted({'datasets', 'huggingface_hub', 'torch', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout == "[]\n", run.stderr

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.painting import colour, encoded, number_of, paint
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from memssl_core.data import datasets
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.drawn import CLASS_NAMES, draw
from memssl_core.errors import DataError, ImageError


def painted(images: Images, image_id: int) -> int:
    """Which of the pictures of `paint` it is."""
    return number_of(lambda: images.read(image_id))


def same(*pictures) -> bool:
    first, second = map(np.asarray, pictures)
    return np.array_equal(first, second)


def refusal(spec: str) -> str:
    with pytest.raises(DataError) as caught:
        open_images(spec)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "Error" not in text
    return text


# Folders


def test_class_folders_give_sorted_ids_and_classes(tmp_path: Path):
    paint(tmp_path, "dog/10.png", "dog/2.png", "cat/b.PNG", "ant/z.jpeg")
    images = open_images(str(tmp_path))
    assert images.uris == ("ant/z.jpeg", "cat/b.PNG", "dog/10.png", "dog/2.png")
    assert images.class_names == ("ant", "cat", "dog")
    assert images.labels is not None and images.labels.dtype == np.int64 and images.labels.tolist() == [0, 1, 2, 2]
    assert [painted(images, i) for i in range(len(images))] == [3, 2, 0, 1]
    assert (images.label(3), images.class_name(3)) == (2, "dog")


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.png"],
        ["cat/a.png", "dog/b.png", "c.png"],  # one picture belongs to no class
        ["only/a.png", "only/b.png"],  # a single class tells nothing
        ["train/cat/a.png", "train/dog/b.png", "val/cat/a.png"],
    ],
)
def test_other_folders_have_no_classes(tmp_path: Path, names: list[str]):
    images = open_images(str(tmp_path if paint(tmp_path, *names) else ""))
    assert images.uris == tuple(sorted(names)) and images.labels is None and images.class_names == ()
    assert images.label(0) is None and images.class_name(0) is None


def test_hidden_and_other_files_are_passed_over(tmp_path: Path):
    paint(tmp_path, "a.png", ".b.png", ".hidden/c.png", "d/.e/f.png", "g.txt", "h.svg", "noending")
    assert open_images(str(tmp_path)).uris == ("a.png",)


def test_links_are_followed_once_and_loops_end(tmp_path: Path):
    paint(tmp_path, "elsewhere/cat/a.png", "data/dog/b.png")
    data = tmp_path / "data"
    (data / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (data / "dog" / "round").symlink_to(data)
    (data / "dog" / "again").symlink_to(data / "cat")
    assert open_images(str(data)).uris == ("cat/a.png", "dog/b.png")


def test_a_picture_that_goes_away_or_is_none_is_named(tmp_path: Path):
    paint(tmp_path, "cat/a.png", "dog/b.png", "dog/c.png")
    images = open_images(str(tmp_path))
    (tmp_path / "cat/a.png").unlink()
    (tmp_path / "dog/b.png").write_text("not a picture")
    (tmp_path / "dog/c.png").unlink()
    os.mkfifo(tmp_path / "dog/c.png")
    for image_id, reason in ((0, "cannot be opened"), (1, "not a picture"), (2, "cannot be opened")):
        with pytest.raises(ImageError) as caught:
            images.read(image_id)
        assert str(caught.value).startswith(f"{images.uris[image_id]}: ") and reason in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_strange_names_are_shown_escaped_and_still_read(tmp_path: Path):
    paint(tmp_path, "<img src=x>.png", "\x1b[31m.png")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb") as file:
        Image.new("RGB", (10, 9), colour(2)).save(file, "PNG")
    images = open_images(str(tmp_path))
    assert images.uris == ("\\x1b[31m.png", "<img src=x>.png", "\\udcff.png")
    assert [painted(images, i) for i in range(3)] == [1, 0, 2]


def test_no_pictures_no_data(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert ".jpg" in refusal(str(tmp_path)) and ".eps" not in refusal(str(tmp_path))
    assert "is a file" in refusal(str(tmp_path / "notes.txt"))
    for spec in (str(tmp_path / "gone"), "", f"{tmp_path}+", "a\0b", "~nobody/at/home", "x" * 5000):
        assert "no such folder" in refusal(spec) or "no pictures" in refusal(spec)


def test_listing_looks_at_folders_not_at_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        for number in range(200):
            (tmp_path / folder / f"{number}.jpg").touch()
    looks = []
    for module, name in ((os, "stat"), (os, "lstat"), (datasets, "decode_image"), (datasets, "read_file")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *at, real=real, **how: (looks.append(at), real(*at, **how))[1])
    assert len(open_images(str(tmp_path))) == 600
    assert len(looks) < 100


# Several sources


def test_joined_sources_share_classes_by_name(tmp_path: Path):
    paint(tmp_path, "a/dog/0.png", "a/cat/1.png", "b/dog/2.png", "b/bee/3.png", "c/4.png")
    images = open_images(" + ".join(str(tmp_path / part) for part in "abc"))
    assert images.uris == ("cat/1.png", "dog/0.png", "bee/3.png", "dog/2.png", "4.png")
    assert [painted(images, i) for i in range(len(images))] == [1, 0, 3, 2, 4]
    assert images.class_names == ("bee", "cat", "dog")
    assert [images.class_name(i) for i in range(5)] == ["cat", "dog", "bee", "dog", None]
    assert images.labels is not None and images.labels.tolist() == [1, 2, 0, 2, -1]


def test_a_folder_may_have_a_plus_in_its_name(tmp_path: Path):
    paint(tmp_path, "c++/a.png")
    assert len(open_images(str(tmp_path / "c++"))) == 1


# Tables


def table(path: Path, n: int, *, struct: bool = True, **columns: list) -> str:
    pictures = [
        {"bytes": encoded(number), "path": f"p{number}.png" if number else None} if struct else encoded(number)
        for number in range(n)
    ]
    pq.write_table(pa.table({"image": pictures, **columns}), path, row_group_size=2)
    return str(path)


def noted(path: Path, features: object, **columns: list) -> str:
    """A table with the note of `datasets` in its schema."""
    note = json.dumps({"info": {"features": features}})
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": note}), path)
    return str(path)


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("name", ["t.parquet", "table"])
def test_tables_are_read_in_row_order(tmp_path: Path, struct: bool, name: str):
    path = table(tmp_path / name, 5, struct=struct)
    images = open_images(path if name == "t.parquet" else f"parquet:{path}")
    assert images.uris == (
        ("row 0", "p1.png", "p2.png", "p3.png", "p4.png") if struct else tuple(f"row {i}" for i in range(5))
    )
    assert [painted(images, i) for i in (4, 0, 2, 1, 3)] == [4, 0, 2, 1, 3]
    assert images.labels is None


def test_class_names_of_a_table(tmp_path: Path):
    spec = table(tmp_path / "t.parquet", 4, label=[7, 7, 7, 7], class_name=["pea", None, "oak", "pea"])
    images = open_images(spec)
    assert images.class_names == ("oak", "pea")
    assert [images.class_name(i) for i in range(4)] == ["pea", None, "oak", "pea"]


def test_labels_of_a_table_keep_their_order_as_numbers(tmp_path: Path):
    images = open_images(table(tmp_path / "t.parquet", 5, label=[10, 2, -1, None, 2]))
    assert images.class_names == ("2", "10")
    assert images.labels is not None and images.labels.tolist() == [1, 0, -1, -1, 0]


def test_the_note_of_datasets_tells_picture_column_and_class_names(tmp_path: Path):
    pictures = [{"bytes": encoded(number), "path": f"{number}.png"} for number in range(6)]
    features = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["pea", "<b>", "oak\x1b"]}}
    fine = [2, 0, -1, None, 3, 2]
    images = open_images(noted(tmp_path / "t.parquet", features, id=[*range(6)], img=pictures, fine=fine))
    assert images.class_names == ("pea", "<b>", "oak\\x1b")  # in the order of their numbers, used or not
    assert images.labels is not None and images.labels.tolist() == [2, 0, -1, -1, -1, 2]
    assert [painted(images, i) for i in range(6)] == [*range(6)]
    assert painted(pickle.loads(pickle.dumps(images)), 4) == 4


@pytest.mark.parametrize("features", [None, [], "x", {"label": 3}, {"label": {"_type": "ClassLabel", "names": 7}}])
def test_a_note_that_makes_no_sense_is_passed_over(tmp_path: Path, features: object):
    images = open_images(noted(tmp_path / "t.parquet", features, image=[encoded(0), encoded(1)], label=[5, 3]))
    assert images.class_names == ("3", "5") and images.uris == ("row 0", "row 1")


def test_what_datasets_writes_is_read(tmp_path: Path):
    script = """
import sys, datasets
from pathlib import Path
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
pictures = [{"path": name, "bytes": Path(sys.argv[1], name).read_bytes()} for name in ("x.png", "y.png")]
rows = {"image": pictures, "label": ["a", "b"]}
datasets.Dataset.from_dict(rows, features=features).to_parquet(sys.argv[2])
"""
    paint(tmp_path, "x.png", "y.png")
    path = tmp_path / "t.parquet"
    subprocess.run([sys.executable, "-c", script, tmp_path, path], check=True, capture_output=True)
    images = open_images(str(path))
    assert [painted(images, i) for i in range(2)] == [0, 1]
    assert images.class_names == ("b", "a") and images.labels is not None and images.labels.tolist() == [1, 0]
    assert images.uris == ("x.png", "y.png")


def test_rows_without_a_picture_are_named(tmp_path: Path):
    path = tmp_path / "t.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([None, {"bytes": None, "path": "p"}, {"bytes": b"x"}], kind)}), path)
    images = open_images(str(path))
    for image_id, name in enumerate(("row 0", "p", "row 2")):
        with pytest.raises(ImageError, match=rf"^{name}: This .* picture"):
            images.read(image_id)


def test_tables_that_cannot_be_used(tmp_path: Path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 not really PAR1")
    assert "not a Parquet file" in refusal(str(path))
    pq.write_table(pa.table({"picture": [b"x"], "id": [1]}), path)
    assert "'image'" in refusal(str(path)) and "picture, id" in refusal(str(path))
    pq.write_table(pa.table({"image": ["a.png"]}), path)
    assert "'image'" in refusal(str(path))
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    assert "no rows" in refusal(str(path))


# The drawn gallery


@pytest.mark.parametrize("shared", [True, False])
def test_drawn_pictures_are_the_galleries(monkeypatch: pytest.MonkeyPatch, shared: bool):
    if not shared:
        monkeypatch.setattr(datasets, "MAX_SHARED_BYTES", 0)
    images = open_images("drawn:3:11:32")
    assert len(images) == 11 and images.class_names == CLASS_NAMES
    for image_id in (10, 0, 10):
        drawing = draw(3, image_id, 32)
        assert same(images.read(image_id), drawing.image)
    assert [images.class_name(i) for i in range(11)] == [draw(3, i, 32).class_name for i in range(11)]


def test_drawn_pictures_are_drawn_once(monkeypatch: pytest.MonkeyPatch):
    images, drawn = open_images("drawn:3:9:32"), []
    monkeypatch.setattr("memssl_core.data.drawn.draw", lambda *at: (drawn.append(at), draw(*at))[1])
    first, second = images.read(4), images.read(4)
    assert same(first, second) and drawn == [(3, 4, 32)]
    first.putpixel((0, 0), 0)  # what is handed out is the reader's own
    assert same(images.read(4), second)


def test_the_size_is_96_unless_said():
    assert open_images("drawn:0:1").read(0).size == (96, 96)


@pytest.mark.parametrize(
    "spec",
    [
        "drawn:",
        "drawn:7",
        "drawn:a:10",
        "drawn:7:0",
        "drawn:-7:10",
        "drawn:7:10:8",
        "drawn:7:10:96:1",
        "drawn:7:99999999",
    ],
)
def test_malformed_drawn_specs_are_shown_the_form(spec: str):
    assert repr(spec) in refusal(spec) and "drawn:SEED:COUNT:SIZE" in refusal(spec)


@given(st.text(max_size=30))
def test_any_spec_opens_or_gets_a_sentence(spec: str):
    try:
        open_images(f"drawn:{spec}" if len(spec) % 2 else f"parquet:{spec}")
    except DataError as problem:
        assert str(problem).isprintable()


# Workers


def sources(folder: Path) -> list[str]:
    paint(folder, "files/cat/a.png", "files/dog/b.png")
    return [str(folder / "files"), table(folder / "t.parquet", 3), "drawn:1:3:16", f"{folder / 'files'}+drawn:1:3:16"]


def as_arrays(batch: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(image) for image in batch]


class Readings:
    """What a data loader indexes."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, image_id: int) -> Image.Image:
        return self.images.read(image_id)


def test_a_pickled_copy_reads_the_same(tmp_path: Path):
    for spec in sources(tmp_path):
        images = open_images(spec)
        copy = pickle.loads(pickle.dumps(images))
        assert (copy.spec, copy.uris, copy.class_names) == (images.spec, images.uris, images.class_names)
        assert all(same(copy.read(i), images.read(i)) for i in range(len(images)))


def test_a_table_is_pickled_without_its_pictures(tmp_path: Path):
    images = open_images(table(tmp_path / "t.parquet", 3))
    size = len(pickle.dumps(images))
    images.read(0)
    assert len(pickle.dumps(images)) == size < 2000


@pytest.mark.parametrize("way", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_workers_read_the_same(tmp_path: Path, way: str):
    images = open_images("+".join(sources(tmp_path)[:3]))
    loader = DataLoader(
        Readings(images),  # type: ignore[arg-type]
        batch_size=2,
        num_workers=1 + (way == "fork"),
        collate_fn=as_arrays,
        multiprocessing_context=way,
    )
    read = [array for batch in loader for array in batch]
    shutil.rmtree(tmp_path)
    drawn = images.reader.args[0][2].reader  # type: ignore[attr-defined]
    assert drawn.is_drawn.all()  # by the workers, in memory this process sees
    assert len(read) == len(images) == 8
    assert all(same(read[5 + i], images.read(5 + i)) for i in range(3))
    assert [tuple(array[0, 0]) for array in read[:5]] == [colour(i) for i in (0, 1, 0, 1, 2)]

"""Parquet tables as other tools write them."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.source_helpers import encoded, level, open_labeled, open_unlabeled, refusal, save

IMAGES = [encoded(i) for i in range(4)]
LABELS = ["a", "b", "a", "b"]


def write(path: Any, /, image: Any = IMAGES, label: Any = LABELS, **more: Any) -> Any:
    columns = {"image": image, "label": label, **more}
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return path


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_views_of_text_and_bytes(tmp_path, monkeypatch, in_memory, nested):
    monkeypatch.setattr("stml_semi.data.sources.table_files._IN_MEMORY_BYTES", 2**30 if in_memory else 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images = pa.array(IMAGES, pa.binary_view())
    if nested:
        images = pa.StructArray.from_arrays([images, pa.array(["x.png"] * 4, pa.string_view())], ["bytes", "path"])
    table = open_labeled(write(tmp_path / "t.parquet", images, pa.array(LABELS, pa.string_view())))
    assert table.classes == ("a", "b")
    assert [level(table, row) for row in range(4)] == [0, 1, 2, 3]


def test_bytes_go_before_texts(tmp_path):
    gone = [f"gone/{i}.png" for i in range(4)]
    for name in ("bytes", "image_bytes", "jpg"):
        for other in ("path", "file_name", "img"):
            table = open_labeled(write(tmp_path / "t.parquet", None, **{other: gone, name: IMAGES}))
            assert [level(table, row) for row in range(4)] == [0, 1, 2, 3]
    numbered = write(tmp_path / "t.parquet", [0, 1, 2, 3], image_bytes=IMAGES)
    assert level(open_labeled(numbered), 2) == 2
    save(tmp_path / "0.png", 9)
    listed = write(tmp_path / "t.parquet", None, path=["0.png"] * 4, hash=IMAGES)
    assert level(open_labeled(listed), 2) == 9


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ([[label] for label in LABELS], "lists"),
        ([{"name": label} for label in LABELS], "objects of name"),
        (pa.array([b"a"] * 4), "bytes"),
    ],
)
def test_labels_that_are_no_text_or_number(tmp_path, label, words):
    path = write(tmp_path / "t.parquet", label=label)
    text = refusal(open_labeled, path)
    assert f"no label column among image (bytes), label ({words}); name it with --labeled-label-column" in text
    text = refusal(open_labeled, path, label_column="label")
    assert f"column 'label' holds {words}; a label is one text or number per image" in text
    assert len(open_unlabeled(path)) == 4


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([[{"bytes": image, "path": None}] for image in IMAGES], "lists"),
        ([list(image) for image in IMAGES], "lists"),
        ([{"data": image} for image in IMAGES], "objects of data"),
    ],
)
def test_columns_that_hold_no_image(tmp_path, image, words):
    path = write(tmp_path / "t.parquet", image, ids=[1, 2, 3, 4])
    assert f"no image column among image ({words}), label, ids; name it" in refusal(open_labeled, path)
    assert f"column 'image' holds {words}; an image is a path" in refusal(open_labeled, path, image_column="image")
    assert "column 'ids' holds int64; an image is a path" in refusal(open_labeled, path, image_column="ids")


def test_numbers_as_labels(tmp_path):
    assert open_labeled(write(tmp_path / "t.parquet", label=[0.0, 1.0, 2.5, 1.0])).classes == ("0", "1", "2.5")
    holes = write(tmp_path / "t.parquet", label=["a ", "a", " ", None])
    assert "2 of 4 rows have no label" in refusal(open_labeled, holes)


def test_a_column_that_is_there_twice(tmp_path):
    table = pq.read_table(write(tmp_path / "t.parquet"))
    pq.write_table(table.append_column("label", table["label"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: has 2 columns called 'label'; rename all but one"):
        open_labeled(tmp_path / "t.parquet")
    assert len(open_unlabeled(tmp_path / "t.parquet")) == 4

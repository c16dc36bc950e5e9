"""Tables as JSON, as tools write them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.source_helpers import level, open_labeled, open_unlabeled, refusal, save

ROWS = [{"image": f"img/{i}.png", "label": f"k{i % 2}"} for i in range(4)]


@pytest.fixture(autouse=True)
def _images(tmp_path):
    for i in range(len(ROWS)):
        save(tmp_path / f"img/{i}.png", i)


def lines(path: Path, labels: list[Any]) -> Path:
    rows = [row | {"label": label} for row, label in zip(ROWS, labels, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_missing_labels_and_numbers_written_two_ways(tmp_path):
    for missing in (float("nan"), None, "", " "):
        text = refusal(open_labeled, lines(tmp_path / "l.jsonl", ["a", missing, "b", missing]))
        assert "2 of 4 rows have no label in column 'label'" in text
    table = open_labeled(lines(tmp_path / "l.jsonl", [1, 1.0, "2", 2.0]))
    assert table.classes == ("1", "2")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 0, 1, 1]
    assert open_labeled(lines(tmp_path / "l.jsonl", [0.5, 1.0])).classes == ("0.5", "1")


def test_a_first_record_without_the_label(tmp_path):
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"image": "img/0.png"}, *ROWS]))
    assert "1 of 5 rows have no label in column 'label'" in refusal(open_labeled, tmp_path / "l.jsonl")
    assert len(open_unlabeled(tmp_path / "l.jsonl")) == 5


@pytest.mark.parametrize(
    "value",
    [
        {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ("image", "label")},
        {name: [row[name] for row in ROWS] for name in ("image", "label")},
        {"data": ROWS},
        {"version": "1.0", "info": {"made": "today"}, "data": ROWS},
        json.loads(str(pd.DataFrame(ROWS).to_json(orient="table"))),
        ROWS,
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_columns_and_records_in_one_value(tmp_path, value, indent, suffix):
    path = tmp_path / f"l.{suffix}"
    path.write_text(json.dumps(value, indent=indent) + "\n")
    table = open_labeled(path)
    assert table.classes == ("k0", "k1")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 0, 1]
    assert [level(table, row) for row in range(4)] == [0, 1, 2, 3]


def test_one_record_is_one_record(tmp_path):
    for more in ({}, {"boxes": [{"x": 1}]}):
        (tmp_path / "l.jsonl").write_text(json.dumps(ROWS[1] | more) + "\n")
        assert level(open_unlabeled(tmp_path / "l.jsonl"), 0) == 1
    (tmp_path / "l.json").write_text(json.dumps({"shown": "img/2.png"}))
    assert level(open_unlabeled(tmp_path / "l.json", image_column="shown"), 0) == 2


def test_lists_and_objects_as_labels(tmp_path):
    path = lines(tmp_path / "l.jsonl", [["a"], ["b"]])
    text = refusal(open_labeled, path)
    assert "no label column among image, label (lists); name it with --labeled-label-column (a label is one" in text
    assert "'label' holds lists; a label is one text or number" in refusal(open_labeled, path, label_column="label")
    nested = [{"image": row["image"], "meta": {"label": row["label"]}} for row in ROWS]
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nested))
    assert "no label column among image, meta (objects of label)" in refusal(open_labeled, tmp_path / "n.jsonl")
    assert "'meta' holds objects of label" in refusal(open_labeled, tmp_path / "n.jsonl", label_column="meta")
    text = refusal(open_labeled, lines(tmp_path / "m.jsonl", ["a", "b", ["c"]]), label_column="label")
    assert "'label' holds lists" in text
    late = [json.dumps({"image": "img/0.png", "label": label}) for label in [*["a"] * 1500, ["c"]]]
    (tmp_path / "late.jsonl").write_text("\n".join(late))
    assert "record 1501 holds a list in column 'label'" in refusal(open_labeled, tmp_path / "late.jsonl")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"image": "img/0.png"}\n{"image" "img/1.png"}\n',
            "line 2 is no JSON: Expecting ':' delimiter at character 1",
        ),
        ('{"image": "img/0.png"}\n\n["img/1.png"]\n', 'record 2 is no object of named values: ["img/1.png"]'),
        ('{"image" "img/0.png"}\n{"image": "img/1.png"}\n', "line 1 is no JSON: Expecting ':' delimiter"),
        (
            '{"images": [{"id": 1}], "annotations": [{"id": 1}, {"id": 2}]}',
            "is one object of images, annotations; give",
        ),
        ("7", "is no table; give one object per line"),
        ('[{"image": "img/0.png"}', "; give one object per line, or one list of objects"),
    ],
)
def test_damaged_files_say_where(tmp_path, text, problem):
    (tmp_path / "l.json").write_text(text)
    said = refusal(open_labeled, tmp_path / "l.json")
    assert "cannot be read, check the file: " in said
    assert problem in said


def test_encodings(tmp_path):
    text = json.dumps([row | {"label": "Möwe"} for row in ROWS] + ROWS, ensure_ascii=False)
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "l.json").write_text(text, encoding=encoding)
        assert open_labeled(tmp_path / "l.json").classes == ("Möwe", "k0", "k1")
    (tmp_path / "l.json").write_text(text, encoding="cp1252")
    assert "line 1 is not UTF-8" in refusal(open_labeled, tmp_path / "l.json")

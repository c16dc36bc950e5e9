"""Sources by the name that a user types in the working folder, not the whole path that a test has at hand."""

from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pictures import write_pictures

from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index
from stml_semi.search.query import open_indexed, search


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows, pairs = ["image,label,price"], ["left,right"]
    for seed, name in enumerate(("owl", "wren")):
        files = [path.relative_to(tmp_path) for path in write_pictures(tmp_path / "photos" / name, 3, seed=seed)]
        rows += [f"{file},{name},{seed}" for file in files]
        pairs += [f"{files[0]},{file}" for file in files[1:]]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "pairs.csv").write_text("\n".join(pairs) + "\n")
    inside = pa.array([path.read_bytes() for path in sorted((tmp_path / "photos").rglob("*.png"))])
    pq.write_table(pa.table({"image": inside, "label": ["owl"] * 3 + ["wren"] * 3}), "inside.parquet")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("data", "columns", "labels"),
    [
        ("photos", None, ["owl", "wren"]),
        ("list.csv", None, ["owl", "wren"]),
        ("inside.parquet", None, ["owl", "wren"]),
        ("pairs.csv", "left,right", ["photos/owl/0.png", "photos/wren/0.png"]),
    ],
)
def test_an_index_keeps_what_the_source_says_and_opens_from_anywhere(home, monkeypatch, data, columns, labels):
    embed_source("tiny-resnet", data, "index", image_column=columns, num_workers=0)
    table = lance.dataset("index/images.lance").to_table()
    assert sorted(set(table["label"].to_pylist())) == labels
    assert ("price" in table.column_names) == (data == "list.csv")
    again = embed_source("tiny-resnet", str(home / data), "index", image_column=columns, num_workers=0)
    assert (again.num_embedded, again.num_changed, again.num_new, again.num_gone) == (0, 0, 0, 0)
    monkeypatch.chdir(home / "elsewhere")
    opened = open_indexed(Index.open("../index"))
    assert opened is not None
    assert sorted(opened.classes) == labels
    (found,) = search("../index", rows=[0], k=5, where=f"label = '{labels[0]}'")
    assert len(found.hits) == 2

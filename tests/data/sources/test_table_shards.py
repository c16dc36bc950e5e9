"""One table in several files: folders, patterns, and lists of shards."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import miniature
from helpers.source_helpers import encoded, level, open_labeled, open_unlabeled, refusal, save, write_csv

from stml_semi.data.sources.open_source import open_source

KINDS = ["parquet", "csv", "jsonl", "tsv"]


def write_shard(path: Path, first: int, count: int = 4) -> Path:
    """Rows with levels `first`, `first + 1`, ... of two classes in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{first + i}.png", f"k{i % 2}") for i in range(count)]
    for i, (name, _) in enumerate(rows):
        save(path.parent.parent / "img" / name, first + i)
    names = [f"../img/{name}" for name, _ in rows]
    if path.suffix == ".parquet":
        images = pa.array([{"bytes": encoded(first + i), "path": None} for i in range(count)])
        pq.write_table(pa.table({"image": images, "label": [label for _, label in rows]}), path)
    elif path.suffix == ".jsonl":
        lines = [{"image": name, "label": label} for name, (_, label) in zip(names, rows, strict=True)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        pairs = [("image", "label"), *((name, label) for name, (_, label) in zip(names, rows, strict=True))]
        write_csv(path, *pairs, delimiter="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_a_pattern_and_a_list(tmp_path, kind):
    data = tmp_path / "data"
    files = [write_shard(data / f"train-0000{i}-of-00002.{kind}", 10 * i) for i in range(2)]
    (data / "README.md").touch()
    for spec in (
        data,
        data / f"*.{kind}",
        data / f"train-*.{kind}",
        tmp_path / f"**/*.{kind}",
        f"{files[0]},{files[1]}",
    ):
        table = open_labeled(spec)
        assert table.classes == ("k0", "k1")
        assert table.labels is not None
        assert table.labels.tolist() == [0, 1] * 4
        assert [level(table, row) for row in range(8)] == [0, 1, 2, 3, 10, 11, 12, 13]
        assert [level(open_unlabeled(spec), row) for row in (0, 7)] == [0, 13]
    assert open_labeled(data).parts == ()
    if kind == "parquet":
        assert open_labeled(data).describe(5) == f"{data}[5]"


def test_different_tables_in_a_folder_are_not_one(tmp_path):
    for i in range(2):
        write_shard(tmp_path / f"data/train-{i}.parquet", 10 * i)
        write_shard(tmp_path / f"data/test-{i}.parquet", 20 + 10 * i)
    text = refusal(open_labeled, tmp_path / "data")
    assert "holds several tables (test-0.parquet, train-0.parquet); name one, as in" in text
    assert f"or a pattern of those that are one, as in '{tmp_path}/data/*.parquet'" in text
    assert len(open_labeled(tmp_path / "data/train-*.parquet")) == 8
    assert len(open_labeled(tmp_path / "data/*.parquet")) == 16, "a pattern says what belongs together"
    write_shard(tmp_path / "other/train-1.parquet", 0)
    write_csv(tmp_path / "other/train-0.csv", ("image",))
    assert "holds several tables (train-0.csv, train-1.parquet)" in refusal(open_labeled, tmp_path / "other")


def test_joined_tables_are_one_if_their_names_differ_in_numbers_alone(tmp_path):
    first, second, other = (
        write_shard(tmp_path / name, 10 * i) for i, name in enumerate(("a/t-0.csv", "a/t-1.csv", "a/birds.csv"))
    )
    far = write_shard(tmp_path / "b/t-2.csv", 30)
    assert open_labeled(f"{first},{second}").classes == ("k0", "k1")
    for joined in (f"{first},{other}", f"{first},{far}"):
        assert open_labeled(joined).classes == tuple(sorted(f"{f}/k{i}" for f in joined.split(",") for i in (0, 1)))
    mixed = open_labeled(f"{first},{other},{second}")
    assert mixed.classes == tuple(sorted(f"{f}/k{i}" for f in (first, other) for i in (0, 1)))
    assert [name for name, _ in mixed.parts] == [str(first), str(other), str(second)]


def test_joined_tar_shards_share_their_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = [tmp_path / f"train-{number}.tar" for number in range(2)]
    for number, file in enumerate(files):
        miniature.write_shard(file, [(number, i) for i in range(6)])
    assert open_labeled(f"{files[0]},{files[1]}").classes == ("0", "1", "2")


def test_shards_that_do_not_fit_together_are_named(tmp_path):
    write_shard(tmp_path / "data/t-0.parquet", 0)
    pq.write_table(pa.table({"image": [encoded(1)]}), tmp_path / "data/t-1.parquet")
    text = refusal(open_labeled, tmp_path / "data")
    assert f"{tmp_path}/data/t-1.parquet: no label column among image" in text
    with pytest.raises(ValueError, match=r"t-1\.parquet has no label column, .*t-0\.parquet has one; give all files"):
        open_source(f"{tmp_path}/data", flag="data info", labels="optional")
    nothing = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}
    pq.write_table(pa.table(nothing), tmp_path / "data/t-1.parquet")
    assert len(open_labeled(tmp_path / "data")) == 4
    (tmp_path / "data/t-0.parquet").unlink()
    assert "holds no rows" in refusal(open_labeled, tmp_path / "data")
    (tmp_path / "data/t-2.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read, check the file" in refusal(open_labeled, tmp_path / "data")


def test_large_tables_are_memory_mapped_whatever_the_size_of_a_shard(tmp_path, monkeypatch):
    files = [write_shard(tmp_path / f"data/t-{i}.parquet", 10 * i) for i in range(2)]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("stml_semi.data.sources.table_files._IN_MEMORY_BYTES", files[0].stat().st_size + 1)
    table = open_labeled(tmp_path / "data")
    assert len(table.images.cache_files) == 2
    assert [level(table, row) for row in range(8)] == [0, 1, 2, 3, 10, 11, 12, 13]


def test_numbers_in_one_shard_and_floats_in_the_other_are_one_class(tmp_path):
    (tmp_path / "data").mkdir()
    for i, labels in enumerate(([1, 2], [1.0, 2.0])):
        pd.DataFrame({"image": [encoded(1)] * 2, "label": labels}).to_parquet(tmp_path / f"data/{i}.parquet")
    assert open_labeled(tmp_path / "data").classes == ("1", "2")


def test_patterns_that_match_something_else_say_what(tmp_path):
    write_shard(tmp_path / "data/t-0.parquet", 0)
    (tmp_path / "data/notes.md").touch()
    text = refusal(open_labeled, f"{tmp_path}/data/*")
    assert (
        f"the pattern matches .md, .parquet, such as {tmp_path}/data/notes.md; let it match tables of one kind" in text
    )
    assert "the pattern matches .png, such as" in refusal(open_labeled, f"{tmp_path}/img/*.png")
    assert "the pattern matches folders, such as" in refusal(open_labeled, f"{tmp_path}/*")
    assert "the pattern matches nothing; check it" in refusal(open_labeled, f"{tmp_path}/data/*.csv")


def test_linked_folders_are_followed_once(tmp_path):
    write_shard(tmp_path / "store/part/t-0.parquet", 0)
    write_shard(tmp_path / "data/own/t-1.parquet", 10)
    (tmp_path / "data/linked").symlink_to(tmp_path / "store")
    (tmp_path / "store/part/up").symlink_to(tmp_path / "data")
    table = open_labeled(f"{tmp_path}/data/**/*.parquet")
    assert [level(table, row) for row in range(len(table))] == [0, 1, 2, 3, 10, 11, 12, 13]

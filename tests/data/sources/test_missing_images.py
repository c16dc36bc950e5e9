"""Rows and samples without an image, and shards with several kinds of images: nothing is lost, nothing ends a run."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value
from helpers.command_line import call
from PIL import Image
from pyarrow import parquet

from stml_semi.data.batches.live_images import live_images
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.open_unlabeled import open_unlabeled
from stml_semi.search.embed import embed_source
from stml_semi.sharing.evaluate import evaluate_model
from stml_semi.training.preflight.doctor import examine
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run

MISSING = 5
REASON = "no image: neither bytes nor a path"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def image(number: int, form: str = "PNG") -> bytes:
    """One of four looks."""
    pixels = np.random.default_rng(number).normal(40 + 50 * (number % 4), 20, (32, 32, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def null_table(kind: str, folder: Path) -> Path:
    """24 rows, one of them without an image."""
    labels = [f"k{i % 4}" for i in range(24)]
    contents = [None if i == MISSING else image(i) for i in range(24)]
    pairs = [data and {"bytes": data, "path": None} for data in contents]
    path = folder / f"{kind}.parquet"
    if kind == "saved":
        features = Features({"image": datasets.Image(), "label": Value("string")})
        Dataset.from_dict({"image": pairs, "label": labels}, features=features).save_to_disk(folder / "saved")
        return folder / "saved"
    if kind == "jsonl":
        (folder / "files").mkdir()
        for i, data in enumerate(contents):
            (folder / f"files/{i}.png").write_bytes(data or b"")
        lines = [{"path": None if i == MISSING else f"files/{i}.png", "label": label} for i, label in enumerate(labels)]
        path = folder / "table.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path
    parquet.write_table(pa.table({"image": pa.array(pairs if kind == "struct" else contents), "label": labels}), path)
    return path


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(number: int, kind: str, *, key: str = "") -> list[tuple[str, bytes]]:
    key = key or f"{number:04}"
    form = "JPEG" if kind.lower().startswith("j") else "PNG"
    return [(f"{key}.{kind}", image(number, form)), (f"{key}.cls", str(number % 4).encode())]


def shard(path: Path, kinds: list[str], *, first: int = 0) -> Path:
    return write_shard(path, [member for i, kind in enumerate(kinds, first) for member in sample(i, kind)])


def unreadable(table: ImageTable) -> dict[str, str]:
    """Where images cannot be read, and why."""
    found = {}
    for row in range(len(table)):
        try:
            read_image(table.source(row))
        except BadImage as error:
            found[table.describe(row)] = str(error)
    return found


def streamed(spec: Path, folder: Path) -> ImageTable:
    stream = open_unlabeled(str(spec), stream=True, image_column=None, data_root=None, seed=0)
    return live_images(stream, seed=0, pool_size=100, folder=folder).draw(0, None).table


@pytest.mark.parametrize("kind", ["struct", "binary", "saved", "jsonl"])
def test_a_row_without_an_image_is_a_bad_image(kind, tmp_path):
    path = null_table(kind, tmp_path)
    for labels in ("required", "ignored"):
        table = open_source(str(path), flag="--labeled", labels=labels)
        assert len(table) == 24
        assert unreadable(table) == {f"{path}[5]": REASON}
    if kind != "saved":  # Which is no stream.
        table = streamed(path, tmp_path / "pool")
        assert len(table) == 24
        assert unreadable(table) == {f"{path}[5]": REASON}


def test_a_stream_may_begin_with_rows_without_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(image(0))
    lines = [{"image": None, "words": ["a"]}] * 3 + [{"image": "a.png", "words": []}]
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert unreadable(streamed(path, tmp_path / "pool")) == dict.fromkeys([f"{path}[{i}]" for i in range(3)], REASON)


def test_every_command_counts_and_names_it(tmp_path, monkeypatch, capsys):
    path = str(null_table("struct", tmp_path))
    entry = {"image": f"{path}[5]", "reason": REASON}
    line = evaluate_model("tiny-resnet", path, num_workers=0)
    assert (line["num_queries"], line["num_unreadable"], line["unreadable"]) == (23, 1, [entry])
    made = embed_source("tiny-resnet", path, str(tmp_path / "index"), num_workers=0)
    assert (made.num_rows, made.num_embedded, made.num_bad) == (24, 23, 1)
    assert json.loads((tmp_path / "index" / "bad_images.jsonl").read_text()) == {"row": 5, **entry}
    _, printed, _ = call(monkeypatch, capsys, "data", "info", path)
    assert f"1 of 24\n            {path}[5]: {REASON}" in "\n".join(map(str.rstrip, printed.splitlines()))
    findings = [finding.text for finding in examine({"unlabeled": path}) if finding.what == "--unlabeled"]
    assert any(f"1 of 24 images opened cannot be read, such as {path}[5] ({REASON})" in text for text in findings)


@pytest.mark.parametrize("cache", ["none", "raw"])
def test_a_run_lists_it_and_goes_on(cache, tmp_path):
    path = str(null_table("binary", tmp_path))
    settings = {
        **{"labeled": path, "eval": path, "backbone": "tiny-resnet", "image_size": 32, "num_workers": 0},
        **{"labeled_batch_size": 24, "images_per_class": 6, "max_steps": 2, "max_bad_fraction": 0.1},
        **{"cache_images": cache, "output_dir": str(tmp_path / "run")},
    }
    run(resolve("sup", settings))
    listed = (tmp_path / "run" / "bad_images.jsonl").read_text()
    assert json.loads(listed) == {"image": f"{path}[5]", "reason": REASON}


KINDS = {
    "alternating": [("jpg", "png")[i // 4 % 2] for i in range(24)],
    "late": ["jpg"] * 20 + ["png"] * 4,
    "upper": [("jpg", "JPG")[i // 4 % 2] for i in range(24)],
    "jpeg": [("jpg", "jpeg")[i // 4 % 2] for i in range(24)],
    "rare": ["webp", "jpg", "bmp", "tiff"] * 6,
}


@pytest.mark.parametrize("name", KINDS)
def test_shards_hold_images_of_any_kind(name, tmp_path):
    path = shard(tmp_path / f"{name}.tar", KINDS[name])
    table = open_source(str(path), flag="--labeled", labels="required")
    assert table.classes == ("0", "1", "2", "3")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 2, 3] * 6
    for found in (table, open_source(str(path), flag="--x", labels="ignored"), streamed(path, tmp_path / "pool")):
        assert unreadable(found) == {}
        expected = [image(i, "JPEG" if kind.lower().startswith("j") else "PNG") for i, kind in enumerate(KINDS[name])]
        assert [found.source(row)["bytes"] for row in range(len(found))] == expected


def test_shards_of_one_kind_each(tmp_path):
    shard(tmp_path / "two" / "a-000.tar", ["jpg"] * 24)
    shard(tmp_path / "two" / "a-001.tar", ["png"] * 24, first=24)
    table = open_source(str(tmp_path / "two"), flag="--labeled", labels="required")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 2, 3] * 12
    assert unreadable(table) == unreadable(streamed(tmp_path / "two", tmp_path / "pool")) == {}


def test_a_sample_without_an_image_is_a_bad_image(tmp_path):
    members = [member for i in range(8) for member in sample(i, "jpg")[i == MISSING :]]
    path = write_shard(tmp_path / "a.tar", [*members, ("__index__.json", b"{}"), (".hidden.jpg", b"no image")])
    table = open_source(str(path), flag="--labeled", labels="required")
    assert len(table) == 8
    assert unreadable(table) == unreadable(streamed(path, tmp_path / "pool")) == {f"{path}[5]": REASON}


def test_what_else_a_sample_holds_is_no_image_of_it(tmp_path):
    """Masks, captions, arrays, descriptions; a class is text, and white space around it is none of its name."""
    others = [("mask.png", image(9)), ("txt", "Ein Rotkehlchen\n".encode("latin-1")), ("json", b"{}"), ("npy", b"\x93")]
    names = [b"robin\n", b" wren"]
    members = [
        (f"{i}.{kind}", data) for i in range(2) for kind, data in [*others, ("jpg", image(i)), ("cls", names[i])]
    ]
    path = write_shard(tmp_path / "a.tar", members)
    table = open_source(str(path), flag="--labeled", labels="required")
    assert table.classes == ("robin", "wren")
    assert [table.source(row)["bytes"] for row in range(2)] == [image(0), image(1)]
    masks = open_source(str(path), flag="--x", labels="ignored", image_column="mask.png")
    assert [masks.source(row)["bytes"] for row in range(2)] == [image(9)] * 2
    with pytest.raises(ValueError, match="2 of 2 rows have no label in column 'json'"):
        open_source(str(path), flag="--labeled", labels="required", label_column="json")


@pytest.mark.parametrize("key", ["scan_2.{:02}", "v1.0/{:04}", "a.b.{}"])
def test_keys_with_dots_are_keys(key, tmp_path):
    count = 200  # More than are looked at together.
    path = write_shard(tmp_path / "a.tar", [m for i in range(count) for m in sample(i, "png", key=key.format(i))])
    table = open_source(str(path), flag="--labeled", labels="required")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 2, 3] * (count // 4)
    assert table.source(count - 1)["bytes"] == image(count - 1)


def test_names_with_and_without_dots(tmp_path):
    """By the convention `b.mask.png` belongs to `b`; what has an image and a class is a sample, whatever its name."""
    keys = ["a.b", "c.d", "e.5", "e", "1.2.3", "1.2.4"]
    members = [m for i, key in enumerate(keys) for m in sample(i, "jpg", key=key)]
    path = write_shard(tmp_path / "a.tar", [*members, *sample(6, "jpg", key="b"), ("b.mask.png", image(9))])
    table = open_source(str(path), flag="--labeled", labels="required")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert [table.source(row)["bytes"] for row in range(7)] == [image(i, "JPEG") for i in range(7)]
    assert len(streamed(path, tmp_path / "pool")) == 7


def test_a_field_that_comes_late_is_a_column(tmp_path):
    members = [member for i in range(400) for member in sample(i, "jpg") + [(f"{i:04}.kind", b"x")] * (i > 300)]
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match="301 of 400 rows have no label in column 'kind'"):
        open_source(str(path), flag="--labeled", labels="required", label_column="kind")


@pytest.mark.parametrize("field", ["image", "img"])
def test_a_field_called_image_is_one(field, tmp_path):
    path = write_shard(tmp_path / "a.tar", [(f"{i}.{field}", image(i)) for i in range(3)])
    for table in (open_source(str(path), flag="--x", labels="ignored"), streamed(path, tmp_path / "pool")):
        assert [table.source(row)["bytes"] for row in range(3)] == [image(i) for i in range(3)]


def test_links_hold_no_image(tmp_path):
    path = write_shard(tmp_path / "a.tar", sample(0, "jpg"))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("0001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert unreadable(open_source(str(path), flag="--x", labels="ignored")) == {f"{path}[1]": REASON}


def test_a_member_that_is_there_twice_is_told(tmp_path):
    path = write_shard(tmp_path / "a.tar", [*sample(0, "jpg"), ("0000.JPG", image(1))])
    with pytest.raises(
        ValueError, match=r"a.tar: sample 0000 holds 0000.jpg twice; give every sample a key of its own"
    ):
        open_source(str(path), flag="--labeled", labels="required")

"""A cache changes how long reading takes, and nothing else that was not asked for."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.data import picture_cache as cache_module
from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, read_image, read_pixels
from stml_semi.data.picture_cache import cache_folder, cached
from stml_semi.data.sources.open_source import open_source


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache_module, "PART_ROWS", 4)
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path) -> ImageTable:
    """Nine small images (0-8), a photo (9), and a file that is none (10)."""
    folder = tmp_path / "pictures"
    write_pictures(folder, 9)
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)
    photo.save(folder / "90.jpg")
    (folder / "91.jpg").write_bytes(b"no image")
    return open_source(str(folder), flag="--unlabeled", labels="ignored")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_small_pictures_are_the_same_and_large_ones_are_made_smaller(table, num_workers):
    done = []
    kept = cached(table, "raw", 64, num_workers=num_workers, progress=done.append)
    assert sum(done) == len(table) == 11
    for row in range(9):
        assert torch.equal(read_pixels(kept.source(row)), read_pixels(table.source(row)))
        assert kept.describe(row) == table.describe(row)
    assert read_pixels(kept.source(9)).shape == (3, 64, 85)
    small = np.asarray(read_image(table.source(9)).resize((85, 64), Image.Resampling.BICUBIC)).astype(int)
    assert abs(read_pixels(kept.source(9)).permute(1, 2, 0).numpy() - small).mean() < 3
    with pytest.raises(BadImage, match="not an image"):
        read_pixels(kept.source(10))


def test_jpeg_keeps_large_pictures_small_and_leaves_the_others(table):
    kept = cached(table, "jpeg", 64, num_workers=0)
    assert read_pixels(kept.source(9)).shape == (3, 64, 85)
    assert (kept.source(9)["bytes"] or b"")[:2] == b"\xff\xd8"
    assert kept.source(3) == table.source(3)


def test_a_cache_is_found_again_and_depends_on_content_form_and_size(table, monkeypatch):
    cached(table, "raw", 64, num_workers=0)
    monkeypatch.setattr(cache_module, "_write_part", None)  # Nothing is left to write.
    again = pickle.loads(pickle.dumps(cached(table, "raw", 64, num_workers=0)))
    assert read_pixels(again.source(9)).shape == (3, 64, 85)
    names = {cache_folder(table, "raw", 64), cache_folder(table, "jpeg", 64), cache_folder(table, "raw", 65)}
    Image.new("RGB", (24, 24)).save(table.describe(3))
    names.add(cache_folder(table, "raw", 64))
    assert len(names) == 4


def test_pictures_in_a_table_count_with_all_their_bytes(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def folder(data: bytes) -> Path:
        parquet.write_table(pyarrow.table({"image": [data] * 5}), tmp_path / "t.parquet")
        return cache_folder(open_source(str(tmp_path / "t.parquet"), flag="x", labels="ignored"), "raw", 64)

    assert folder(b"a" * 5000) == folder(b"a" * 5000)
    assert folder(b"a" * 5000) != folder(b"a" * 2500 + b"b" + b"a" * 2499)


def test_a_full_disk_is_one_clear_line_and_finished_parts_stay(table, place, monkeypatch):
    write, written = cache_module._write_part, []

    def full(path: Path, pictures: list) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, pictures)

    monkeypatch.setattr(cache_module, "_write_part", full)
    with pytest.raises(ValueError, match=r"--cache-images: .*No space left on device; make room, or set HF_DATASETS_"):
        cached(table, "raw", 64, num_workers=0)
    assert [path.name for path in place.rglob("*.*")] == ["000000000.arrow"]


_BUILD = """
import sys
from stml_semi.data import picture_cache as cache
from stml_semi.data.sources.open_source import open_source
cache.PART_ROWS = 4
table = open_source(sys.argv[1], flag="x", labels="ignored")
cache.cached(table, "raw", 16, num_workers=0, progress=lambda count: print(count, flush=True))
"""


@pytest.mark.slow
def test_a_killed_build_goes_on_and_leaves_nothing_half_written(tmp_path, place):
    write_pictures(tmp_path / "many", 160, side=200)
    source = str(tmp_path / "many")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(place), "PYTHONPATH": str(Path(__file__).parents[2])}
    build = [sys.executable, "-c", _BUILD, source]
    with subprocess.Popen(build, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "4\n"
        running.send_signal(signal.SIGKILL)
    table = open_source(source, flag="x", labels="ignored")
    there = {path: path.stat().st_mtime_ns for path in place.rglob("*.arrow")}
    assert 0 < len(there) < 40
    kept = cached(table, "raw", 16, num_workers=0)
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())
    assert all(read_pixels(kept.source(row)).shape == (3, 16, 16) for row in range(160))

"""What is done to the images before a run, and what chooses its result, is alike on any number of processes."""

import numpy as np
import pytest
from helpers.pictures import write_pictures
from helpers.real_runs import TERMS, finish, lines, start
from PIL import Image


@pytest.mark.slow
def test_two_processes_share_cache_overlap_and_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in "abcdefgh":
        write_pictures(tmp_path / "labeled" / name, 4, seed=ord(name))
    # Ten images of the pool are tested on, one is none, and one is large enough to be made smaller.
    for name in "wx":
        write_pictures(tmp_path / "test" / name, 5, seed=ord(name))
        write_pictures(tmp_path / "pool" / f"{name}-copies", 5, seed=ord(name))
    for name in "mnop":
        write_pictures(tmp_path / "pool" / name, 10, seed=ord(name))
    (tmp_path / "pool" / "m" / "0.png").write_bytes(b"no image")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC).save(tmp_path / "pool" / "n" / "large.jpg")
    flags = [
        *("--labeled", "labeled", "--unlabeled", "pool", "--eval", "test", "--backbone", "tiny-resnet"),
        *("--cache-images", "raw", "--exclude-overlap", "--validation-classes", "0.25", "--max-bad-fraction", "0.1"),
        *("--labeled-batch-size", "8", "--unlabeled-batch-size", "20", "--label-warmup-steps", "1"),
        *("--max-steps", "4", "--eval-every", "2", "--save-every", "0", "--log-every", "1", "--num-workers", "0"),
    ]
    for processes in (1, 2):
        if processes == 2:
            (tmp_path / "cache").rename(tmp_path / "old")  # They are to build it together, not to find it.
        # In a process of its own too: where caches are is read at the start.
        done = finish(start(tmp_path / f"run-{processes}", *flags, processes=processes))
        assert done.returncode == 0, done.stderr
        assert "10 of 51 unlabeled images are left out" in done.stderr
        assert "caching unlabeled images" in done.stderr
        assert not list((tmp_path / "cache").rglob("*.partial"))
    one, two = tmp_path / "run-1", tmp_path / "run-2"
    for name in ("overlap.jsonl", "bad_images.jsonl", "validation_classes.json"):
        assert (one / name).read_text() == (two / name).read_text()
    assert len((one / "bad_images.jsonl").read_text().splitlines()) == 1
    for a, b in zip(lines(one), lines(two), strict=True):
        assert {term: a[term] for term in TERMS} == pytest.approx({term: b[term] for term in TERMS}, rel=1e-3, abs=1e-6)
    scores = [lines(run, "model") for run in (one, two)]
    assert [(s["step"], s["model"], s["data"]) for s in scores[0]] == [
        (s["step"], s["model"], s["data"]) for s in scores[1]
    ]

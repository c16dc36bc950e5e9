"""The book of bad images: each once, and too many end a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.data.run_tables import Tables
from stml_semi.run_folder.log import RunLog
from stml_semi.runtime.errors import RunFailed
from stml_semi.training.bad_images import BadImages


def book(folder, total: int, **values: Any) -> BadImages:
    config = TrainConfig(labeled="x", **values)
    pool: Any = SimpleNamespace(num_known=total)
    return BadImages(config, Tables(None, None, None, ()), pool, RunLog(folder, writes=True))


def bad(count: int, first: int = 0) -> list[BadImageEntry]:
    return [BadImageEntry(f"{number}.png", "is empty") for number in range(first, first + count)]


def test_one_bad_image_never_ends_a_run_and_too_many_do(tmp_path):
    book(tmp_path, 5).list(bad(1))
    listed = book(tmp_path, 1000)
    listed.list(bad(10))
    listed.list(bad(10))  # The same ones.
    listed.list([])
    with pytest.raises(RunFailed, match="11 of 1000 images cannot be read, more than --max-bad-fraction 0.01 allows"):
        listed.list(bad(1, first=10))
    assert [line["image"] for line in listed.log.bad_lines()] == [f"{n}.png" for n in [0, *range(11)]]


def test_a_single_one_ends_a_strict_run(tmp_path):
    strict = book(tmp_path, 5, on_bad_image="error")
    strict.list([])  # Listed before, in a run that was resumed.
    with pytest.raises(RunFailed, match="0.png: is empty"):
        strict.list(bad(1))

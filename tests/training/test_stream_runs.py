"""Whole runs over a stream ten times larger than the pool: killed, resumed, and with two processes."""

import json
import re
import shutil
import socket
import tempfile

import psutil
import pytest
from helpers import miniature
from helpers.real_runs import TERMS, lines, start, train, wait_for_step

from stml_semi.report.write import report_runs

POOL, SHARDS, PER_SHARD = 40, 4, 100
FLAGS = [
    *("--unlabeled-stream", "--pool-size", str(POOL), "--unlabeled-batch-size", "20", "--refresh-every", "3"),
    *("--max-steps", "33", "--save-every", "4", "--log-every", "1", "--num-workers", "0"),
    *("--backbone", "tiny-resnet", "--image-size", "32"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("stream")
    (place / "shards").mkdir()
    for shard in range(SHARDS):
        pictures = [(shard, i) for i in range(PER_SHARD)]
        miniature.write_shard(place / "shards" / f"{shard}.tar", pictures, with_labels=False)
    flags = [*FLAGS, "--unlabeled", str(place / "shards")]
    done = train(place / "run", *flags, command="unsup")
    assert done.returncode == 0, done.stderr
    assert "shards: a stream" in " ".join(done.stderr.split())
    assert not (place / "run" / "pool").exists()
    return place / "run", flags


def stands(folder):
    """Where the stream stood at the end."""
    state = json.loads((folder / "checkpoints" / "step-33" / "state.json").read_text())
    return state["pool_refresh"], state["pool_stream"]


@pytest.mark.slow
def test_the_report_reads_the_last_pool_of_a_stream_again(undisturbed, tmp_path, monkeypatch):
    whole, _ = undisturbed
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    live = whole / "pool" / socket.gethostname() / "pool-10-0.arrow"  # As if the run were still going on.
    live.parent.mkdir(parents=True)
    live.touch()
    page = report_runs([str(whole)], str(tmp_path / "report.html")).read_text()
    assert f"At step 33, {POOL} of {SHARDS * PER_SHARD} unlabeled images were live." in page
    assert "::" in page  # A member of a shard, by its name.
    assert live.exists()
    shutil.rmtree(whole / "pool")
    shards = sorted((whole.parent / "shards").iterdir())
    kept = [shard.read_bytes() for shard in shards]
    for shard, data in zip(shards, kept[1:] + kept[:1], strict=True):
        shard.write_bytes(data)
    try:
        page = report_runs([str(whole)], str(tmp_path / "other.html")).read_text()
    finally:
        for shard, data in zip(shards, kept, strict=True):
            shard.write_bytes(data)
    assert re.search("the unlabeled images are not shown: .*the stream holds other images than when", page)
    assert not list(tmp_path.glob("stml-semi-*"))


@pytest.mark.slow
def test_a_run_over_a_stream_is_killed_and_goes_on(undisturbed, tmp_path):
    whole, flags = undisturbed
    refresh, record = stands(whole)
    assert refresh == 10
    assert record["after"][0][:2] == [1, 11 * POOL - SHARDS * PER_SHARD]  # All of it was read, and it started again.
    folder = tmp_path / "run"
    running = start(folder, *flags, command="unsup")
    wait_for_step(folder, 14)
    running.kill()
    running.communicate()
    assert (folder / "pool").exists()
    done = train(folder, "--resume", command="unsup")
    assert done.returncode == 0, done.stderr
    assert not (folder / "pool").exists()
    for a, b in zip(lines(whole), lines(folder), strict=True):
        assert {term: a[term] for term in TERMS} == {term: b[term] for term in TERMS}
    assert stands(folder) == stands(whole)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, folder)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_see_the_same_stream_before_and_after_a_kill(undisturbed, tmp_path):
    whole, flags = undisturbed
    folder = tmp_path / "run"
    running = start(folder, *flags, processes=2, command="unsup", report=True)
    wait_for_step(folder, 13)
    everyone = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
    for process in everyone:
        process.kill()
    running.communicate()
    done = train(folder, "--resume", processes=2, command="unsup", report=True)
    assert done.returncode == 0, done.stderr
    assert "unlabeled images were live" in (folder / "report.html").read_text()  # By one process alone.
    assert not (folder / "pool").exists()
    for a, b in zip(lines(whole), lines(folder), strict=True):
        assert {term: a[term] for term in TERMS} == pytest.approx({term: b[term] for term in TERMS}, rel=1e-3, abs=1e-6)
    assert stands(folder) == stands(whole)

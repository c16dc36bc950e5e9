"""A run folder has one owner, and a killed run leaves no lock behind."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.real_runs import lines, start, train, wait_for_step

from stml_semi.run_folder.lock import NAME, FolderLock
from stml_semi.runtime.errors import BadInput

_HOLD = """
import sys, time
from pathlib import Path
from stml_semi.run_folder.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), lambda: None)
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    held = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    return held


def test_a_second_process_is_refused_and_a_kill_frees_the_folder(tmp_path):
    about = {"process": 1, "host": "elsewhere", "started": "2026-01-01 00:00:00 UTC"}
    lock = FolderLock(tmp_path, lambda: about)
    lock.check()
    with holder(tmp_path) as held:
        for attempt in (lock.acquire, lock.check):
            with pytest.raises(BadInput, match="another run writes here .process 1 on elsewhere, started 2026-01-01"):
                attempt()
        held.kill()
        held.wait()
        lock.acquire()
    lock.check()  # One's own.
    lock.close()
    lock.check()


def test_a_holder_that_died_is_waited_for(tmp_path):
    """Decoding processes hold the lock of a killed run for some seconds."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    about = {"process": dead.pid, "host": socket.gethostname(), "started": "now"}
    with holder(tmp_path) as held:
        threading.Timer(1, held.kill).start()
        begun = time.monotonic()
        lock = FolderLock(tmp_path, lambda: about)
        lock.acquire()
        assert time.monotonic() - begun > 0.5
        lock.close()


def test_where_nothing_can_be_locked_a_file_is_the_lock(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise NotImplementedError("this file system does not support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    first, second = FolderLock(tmp_path, lambda: None), FolderLock(tmp_path, lambda: None)
    first.acquire()
    with pytest.raises(BadInput, match="another run writes here"):
        second.acquire()
    first.close()
    second.acquire()
    second.close()


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / NAME).touch()

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    with pytest.raises(BadInput, match="--output-dir .*: Permission denied; choose a folder you can write to"):
        FolderLock(tmp_path, lambda: None).check()


@pytest.mark.slow
def test_two_runs_in_one_folder(tmp_path):
    """At once, and into one that works: exactly one of them trains, and its logs are its own."""
    flags = ["--labeled", "kanji", "--eval", "kanji:train", "--backbone", "tiny-resnet", "--num-workers", "1"]
    flags += ["--labeled-batch-size", "16", "--images-per-class", "2", "--log-every", "1", "--save-every", "10"]
    flags += ["--max-steps", "300"]
    folder = tmp_path / "run"
    runs = [start(folder, *flags, "--seed", str(seed), command="sup") for seed in (1, 2)]
    while all(run.poll() is None for run in runs):
        time.sleep(0.1)
    refused = next(run for run in runs if run.poll() is not None)
    working = next(run for run in runs if run is not refused)
    assert refused.returncode == 2
    assert "another run writes here" in refused.communicate()[1]  # By whom is known a moment later.
    wait_for_step(folder, 12)
    for way in ("--resume", "--overwrite"):
        late = train(folder, *([] if way == "--resume" else flags), way, command="sup")
        assert late.returncode == 2
        assert f"another run writes here (process {working.pid} on" in late.stderr
    working.kill()
    working.communicate()
    assert [line["step"] for line in lines(folder)] == list(range(1, len(lines(folder)) + 1))
    seed = 1 if working is runs[0] else 2
    assert f"seed: {seed}\n" in (folder / "config.yaml").read_text()
    last = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    resumed = train(folder, "--resume", "--max-steps", str(last + 2), command="sup")
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 2

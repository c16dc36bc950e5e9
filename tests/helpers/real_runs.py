"""Whole runs in real processes, for the tests that need them."""

import contextlib
import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
from accelerate.state import AcceleratorState
from helpers.warm import Command, run_warm

from stml_semi.cli import app

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "stml_semi" / "data" / "embedded"
_SOME = "some of kanji-more"
KANJI = [
    *("--labeled", "kanji", "--unlabeled", _SOME, "--eval", "kanji:train", "--pool-size", "300"),
    *("--labeled-batch-size", "16", "--images-per-class", "2", "--unlabeled-batch-size", "20"),
    *("--label-warmup-steps", "6", "--refresh-every", "8", "--log-every", "1", "--num-workers", "0"),
]


def train(
    folder: Path, *flags: str, processes: int = 1, command: str = "semi", report: bool = False
) -> subprocess.CompletedProcess[str]:
    """Trains to the end. One process is this one, since imports are half of what such a run takes."""
    arguments = _training(folder, flags, command, report)
    done = run_here(*arguments) if processes == 1 else run_together(*arguments, processes=processes)
    assert done.returncode != 0 or re.search(rf"^processes +{processes},", done.stderr, re.MULTILINE)
    return done


def finish(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    output, errors = running.communicate(timeout=400)
    return subprocess.CompletedProcess(running.args, running.returncode, output, errors)


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What cli.py does with these arguments, in this process."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: object = 0
    before, sys.argv = sys.argv, ["cli.py", *arguments]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            app.run()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
        AcceleratorState._reset_state(reset_partial_state=True)
    texts = [stream.buffer.getvalue().decode() for stream in (output, errors)]  # pyright: ignore[reportAttributeAccessIssue]
    return subprocess.CompletedProcess(arguments, int(str(code)), *texts)


def run_together(*arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    """What cli.py does with these arguments in several processes, as `accelerate launch` starts them."""
    environment = {**_several(processes), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return run_warm(*(Command([*arguments], environment | rank, Path.cwd()) for rank in ranks))


def start(
    folder: Path, *flags: str, processes: int = 1, command: str = "semi", report: bool = False
) -> subprocess.Popen[str]:
    """Starts a training in a process of its own, or in several."""
    return cli(*_training(folder, flags, command, report), processes=processes)


def _training(folder: Path, flags: Iterable[str], command: str, report: bool) -> list[str]:
    """The report would take a fifth of the time of such short ones."""
    return [command, *_with_some(flags), *(() if report else ("--no-report",)), "--output-dir", str(folder)]


def kanji() -> list[str]:
    """KANJI, as `cli` takes it."""
    return _with_some(KANJI)


def _with_some(flags: Iterable[str]) -> list[str]:
    return [str(_some_kanji()) if flag == _SOME else flag for flag in flags]


def _some_kanji() -> Path:
    """600 images, twice as many as a refresh embeds: the first look at all 10,560 would take longer than such runs.

    In one place, for a run that goes on takes the same sources.
    """
    file = Path(tempfile.gettempdir()) / f"stml-semi-tests-{getpass.getuser()}" / "some-kanji.parquet"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        own = file.with_suffix(f".{os.getpid()}")
        pq.write_table(pq.read_table(EMBEDDED / "kanji_more.parquet").slice(0, 600), own)
        own.replace(file)
    return file


def cli(
    *arguments: str, processes: int = 1, script: Path = ROOT / "cli.py", cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Starts cli.py, or another script, with these arguments."""
    launch = [sys.executable]
    if processes > 1:
        # accelerate starts several processes on a CPU only in this way: --cpu, or neither, would silently start one.
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--num_processes", str(processes)]
        launch += ["--main_process_port", str(_free_port())]
    return subprocess.Popen(
        [*launch, str(script), *arguments],
        env=_several(processes),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _several(processes: int) -> dict[str, str]:
    """Variables of processes on a CPU."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return found | ({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {})


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def lines(folder: Path, key: str = "loss") -> list[dict]:
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if key in line]


TERMS = ["loss", "labeled_loss", "relaxed_contrastive", "self_distillation", "unlabeled_weight", "grad_ratio", "lr"]


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists():
            text = (folder / "metrics.jsonl").read_text()
            if any(f'"step": {s}, "loss"' in text for s in range(step, step + 4)):
                return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")

"""Commands in processes of their own that need not import the libraries: they are copies of one that has.

Imports are half of what a short command takes. A test of starting, of the launcher or of signals starts a real one.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["accelerate", "datasets", "sentence_transformers", "torchvision.transforms.v2"])


class Command(NamedTuple):
    """A command of stml-semi."""

    arguments: list[str]
    environment: dict[str, str]
    cwd: Path
    packages: Path = ROOT
    """Where stml_semi is imported from."""


def run_warm(*commands: Command, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Runs commands at the same time; what they print is joined, and the first code that is not 0 is theirs."""
    with tempfile.TemporaryDirectory() as folder:
        files = [(f"{folder}/{number}.out", f"{folder}/{number}.err") for number in range(len(commands))]
        running = [_WARM.Process(target=_be, args=(*one, *pair)) for one, pair in zip(commands, files, strict=True)]
        for process in running:
            process.start()
        for process in running:
            process.join(timeout)
        codes = [process.exitcode for process in running]
        for process in running:
            process.kill()  # Those that did not end.
        output, errors = ("".join(Path(pair[i]).read_text() for pair in files) for i in range(2))
    failed = [code for code in codes if code != 0]
    code = -1 if None in failed else next(iter(failed), 0)
    return subprocess.CompletedProcess(commands[0].arguments, code or 0, output, errors)


def _be(arguments: list[str], environment: dict[str, str], cwd: Path, packages: Path, output: str, errors: str) -> None:
    """In the process."""
    for number, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ |= environment
    os.chdir(cwd)
    sys.path[:] = [str(packages), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests"))]
    sys.argv = ["stml-semi", *arguments]
    import torch

    from stml_semi.cli import app
    from stml_semi.data import workers

    assert Path(app.__file__).is_relative_to(packages)
    # Such a copy takes seconds to start processes of its own, nobody knows why.
    workers.default_num_workers = lambda local_world_size: 0
    torch.set_num_threads(1)
    app.main()

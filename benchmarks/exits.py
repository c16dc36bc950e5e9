"""Short runs of several processes that end one after another: how many end cleanly.

    python benchmarks/exits.py                         50 runs of two and three processes: a quarter of an hour

A run counts as clean if every process ended with 0, if the table, the report and the export are there, and if nothing
on its way out wrote a line about a signal, an exception or a thread.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
RUN = [
    *("semi", "--labeled", "kanji", "--eval", "kanji:train", "--pool-size", "64"),
    *("--labeled-batch-size", "18", "--images-per-class", "3", "--unlabeled-batch-size", "30", "--max-steps", "3"),
    *("--label-warmup-steps", "1", "--eval-every", "3", "--log-every", "1"),
]
MORE = ROOT / "stml_semi" / "data" / "embedded" / "kanji_more.parquet"
BAD = re.compile(r"terminate called|Traceback|SIG[A-Z]+|Segmentation|core dumped|exitcode|Fatal", re.IGNORECASE)


def run(processes: int, unlabeled: Path, folder: Path) -> str | None:
    """What was wrong with one run; None if nothing was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)),
    ]
    done = subprocess.run(
        [
            *(*launch, "--num_processes", str(processes), str(ROOT / "cli.py"), *RUN),
            *("--unlabeled", str(unlabeled), "--output-dir", str(folder)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"ended with {done.returncode}: {done.stderr[-2000:]}"
    if found := BAD.search(done.stderr):
        return f"wrote {found.group()!r}: {done.stderr[-2000:]}"
    missing = [
        name for name in ("metrics.jsonl", "report.html", "model/model.safetensors") if not (folder / name).exists()
    ]
    return f"lacks {', '.join(missing)}" if missing else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3], help="in turn")
    options = parser.parse_args()
    clean, start = dict.fromkeys(options.processes, 0), time.perf_counter()
    tried = dict.fromkeys(options.processes, 0)
    for number in range(options.runs):
        processes = options.processes[number % len(options.processes)]
        with tempfile.TemporaryDirectory() as folder:
            some = Path(folder) / "some.parquet"
            pq.write_table(pq.read_table(MORE).slice(0, 100), some)
            problem = run(processes, some, Path(folder) / "run")
        tried[processes] += 1
        clean[processes] += problem is None
        if problem:
            print(f"run {number + 1}, {processes} processes: {problem}", flush=True)
    for processes in options.processes:
        print(f"{processes} processes: {clean[processes]} of {tried[processes]} runs ended cleanly")
    print(f"{(time.perf_counter() - start) / options.runs:.1f} s a run")
    sys.exit(clean != tried)


if __name__ == "__main__":
    main()

"""Kills at random moments, full disks, damaged files: what survives, and what is lost.

    python benchmarks/faults.py                      # 200 kills, about an hour on two cores
    python benchmarks/faults.py --kills 20 --only train,embed

Every command is killed with SIGKILL at random moments, started again until it ends, and compared bit by bit with a run
that nobody disturbed. Full disks are small file systems in memory, which only root can mount. A damaged file must be
refused in one line, or change nothing.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from stml_semi.search.index import Index

ROOT = Path(__file__).parents[1]
SEMI = shlex.split("""
    semi --labeled kanji --unlabeled kanji-more --eval kanji:train --backbone tiny-resnet --pool-size 300
    --labeled-batch-size 16 --images-per-class 2 --unlabeled-batch-size 20 --embedding-dim 32 --auxiliary-dim 32
    --label-warmup-steps 6 --refresh-every 8 --max-steps 40 --log-every 1 --save-every 3 --eval-every 20
    --num-workers 1 --seed 3 --no-report
""")


class Scenario(NamedTuple):
    """A command that works in a folder of its own, and what it must leave there."""

    first: list[str]
    again: list[str]
    """After a kill; may differ (--resume)."""
    state: Callable[[Path], dict[str, object]]
    """What has to be as in the undisturbed run."""


def of_run(folder: Path) -> dict[str, object]:
    """Losses, scores and weights of a run; and no leftovers."""
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().split("\n")[:-1]]
    timing = {"images_per_second", "data_wait", "gpu_memory_gib"}
    found: dict[str, object] = {"lines": [{k: v for k, v in line.items() if k not in timing} for line in lines]}
    found |= {"checkpoints": sorted(path.name for path in (folder / "run/checkpoints").iterdir())}
    return found | {"model": digest_of(folder / "run/model"), "leftovers": leftovers(folder)}


def of_folder(name: str, folder: Path) -> dict[str, object]:
    """Files of a model."""
    return {name: digest_of(folder / name), "leftovers": leftovers(folder)}


def of_index(name: str, folder: Path) -> dict[str, object]:
    """All rows of an index; its table is in other files each time."""
    rows = Index.open(folder / name).table.to_table().sort_by("row").to_pylist()
    return {"rows": hashlib.sha256(repr(rows).encode()).hexdigest(), "leftovers": leftovers(folder)}


def digest_of(folder: Path) -> dict[str, str]:
    """File -> digest of what is in it; tensors by their values, since writers may differ in unused bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "README.md"
    }


def _content(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    return b"".join(key.encode() + value.tobytes() for key, value in sorted(load_file(path).items()))


def leftovers(folder: Path) -> list[str]:
    """Files that nobody needs any more."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "partial" in path.name)


def scenarios(work: Path) -> dict[str, Scenario]:
    """Each command with images of its own."""
    photos = work / "photos"
    if not photos.exists():
        rng = np.random.default_rng(0)
        photos.mkdir(parents=True)
        for number in range(600):
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(photos / f"{number:04}.png")
    run = ["--output-dir", "run"]
    embed = ["embed", "--model", "tiny-resnet", "--data", str(photos), "--output", "index", "--part-size", "16"]
    embed += ["--batch-size", "16", "--num-workers", "0"]
    trained = work / "trained" / "run"
    if not (trained / "model").exists():
        shutil.rmtree(trained.parent, ignore_errors=True)
        trained.parent.mkdir(parents=True)
        call([*SEMI, *run], trained.parent)
    export = ["export", str(trained), "--output", "exported", "--weights", "teacher"]
    cached = [*SEMI, "--cache-images", "raw", *run]
    return {
        "train": Scenario([*SEMI, *run], ["semi", "--resume", *run], of_run),
        "train with a cache": Scenario(cached, ["semi", "--resume", *run], of_run),
        "embed": Scenario(embed, embed, partial(of_index, "index")),
        "export": Scenario(export, export, partial(of_folder, "exported")),
    }


def environment(folder: Path) -> dict[str, str]:
    """Caches of its own, one thread."""
    own = {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **own}


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """cli.py in a process group of its own."""
    command, pipe = [sys.executable, str(ROOT / "cli.py"), *arguments], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def call(arguments: list[str], folder: Path) -> float:
    """Runs a command to its end. Returns how many seconds it took."""
    begun = time.monotonic()
    running = start(arguments, folder)
    _, errors = running.communicate()
    assert running.returncode == 0, errors
    return time.monotonic() - begun


class Outcome(NamedTuple):
    """Of one series of kills, or one damaged file."""

    what: str
    tries: int
    lost: list[str]


class Whole(NamedTuple):
    """What nobody disturbed."""

    state: dict[str, object]
    seconds: float


def kill_again_and_again(name: str, scenario: Scenario, whole: Whole, seed: int, work: Path) -> Outcome:
    """Up to five kills at random moments of one job, then its end."""
    rng, folder = random.Random(f"{name} {seed}"), fresh(work / f"{name.replace(' ', '-')}-{seed}")
    kills, arguments, errors = 0, scenario.first, ""
    while True:
        running = start(arguments, folder)
        patience = rng.uniform(0.3, 0.9) * whole.seconds if kills < 5 else None
        try:
            _, errors = running.communicate(timeout=patience)
            break
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            kills += 1
        arguments = following(scenario, folder)
    lost = [f"{name}, seed {seed}: exit code {running.returncode}: {errors[-300:]}"] if running.returncode else []
    if not lost:
        found = scenario.state(folder)
        lost = [f"{name}, seed {seed}: {key} differs" for key in whole.state if found[key] != whole.state[key]]
    if not lost:
        shutil.rmtree(folder)
    return Outcome(f"{name}: kills", kills, lost)


def following(scenario: Scenario, folder: Path) -> list[str]:
    """What a user would type after a kill."""
    if (folder / "run/config.yaml").exists():
        return scenario.again
    return [*scenario.first, *(["--overwrite"] if (folder / "run").exists() else [])]


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[bool]:
    """A file system of this size, mounted at the folder, where that is allowed. Yields whether it is."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill_the_disk(name: str, scenario: Scenario, whole: Whole, mebibytes: int, work: Path) -> Outcome:
    """The command on a disk that is too small: one line, and its end once there is room."""
    place, what = fresh(work / f"disk-{name.replace(' ', '-')}-{mebibytes}"), f"{name}: full disks"
    with small_disk(place, mebibytes) as mounted:
        if not mounted:
            return Outcome(f"{what} (not root: skipped)", 0, [])
        running = start(scenario.first, place)
        _, errors = running.communicate()
        if running.returncode == 0:
            return Outcome(what, 0, [])  # There was room.
        if "Traceback" in errors or sum(line.startswith("error: ") for line in errors.splitlines()) != 1:
            return Outcome(what, 1, [f"{name}, {mebibytes} MiB: {errors[-600:]}"])
        roomy = fresh(work / f"roomy-{name.replace(' ', '-')}-{mebibytes}")
        shutil.copytree(place, roomy, dirs_exist_ok=True)
    running = start(following(scenario, roomy), roomy)
    _, errors = running.communicate()
    found = scenario.state(roomy) if running.returncode == 0 else {}
    differing = [key for key in whole.state if found.get(key) != whole.state[key]]
    if not differing:
        shutil.rmtree(roomy)
    return Outcome(what, 1, [f"{name}, {mebibytes} MiB: {key} differs {errors[-300:]}" for key in differing])


def damage(seed: int, work: Path) -> Outcome:
    """One byte of one file of a finished run or index changes, or its end is gone; then every reader has a look."""
    rng, source = random.Random(seed), work / "whole"
    folder = fresh(work / f"damaged-{seed}")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.name != ".lock")
    victim = rng.choice(files)
    content = bytearray(victim.read_bytes())
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    victim.write_bytes(content)
    lost = []
    readers = [
        ["export", "run", "--output", "exported", "--weights", "teacher"],
        ["search", "--index", "index", "--row", "3"],
        ["semi", "--resume", "--max-steps", "42", "--output-dir", "run"],
    ]
    for arguments in readers:
        running = start(arguments, folder)
        _, errors = running.communicate()
        if running.returncode not in (0, 1, 2) or "Traceback" in errors:
            lost.append(f"{victim.relative_to(folder)}: {arguments[0]}: {errors[-600:]}")
    if not lost:
        shutil.rmtree(folder)
    return Outcome("damaged files", 1, lost)


def main() -> None:
    """Prints a line for each kind: tries, and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", help="scenarios, joined by commas")
    parser.add_argument("--output", default=str(ROOT / "runs" / "faults"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    work = Path(options.output).absolute()
    only = (options.only or "").split(",")
    chosen = {name: scenario for name, scenario in scenarios(work).items() if not options.only or name in only}
    wholes = {}
    for name, scenario in chosen.items():
        folder = fresh(work / f"whole-{name.replace(' ', '-')}")
        seconds = call(scenario.first, folder)
        wholes[name] = Whole(scenario.state(folder), seconds)
    jobs: list[Callable[[], Outcome]] = [
        partial(fill_the_disk, name, scenario, wholes[name], size, work)
        for name, scenario in chosen.items()
        for size in (1, 2, 3, 5, 8)
    ]
    if options.only is None:
        shutil.rmtree(work / "whole", ignore_errors=True)
        shutil.copytree(work / "whole-train", work / "whole")
        shutil.copytree(work / "whole-embed/index", work / "whole/index")
        jobs += [partial(damage, seed, work) for seed in range(40)]
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes += pool.map(lambda job: job(), jobs)
        for seed in itertools.count():
            killed = [outcome.tries for outcome in outcomes if outcome.what.endswith("kills")]
            if sum(killed) >= options.kills:
                break
            killing = [partial(kill_again_and_again, n, chosen[n], wholes[n], seed, work) for n in chosen]
            outcomes += pool.map(lambda job: job(), killing)
    print("| what | tries | lost |\n|---|---|---|")
    for what in dict.fromkeys(outcome.what for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.what == what]
        print(f"| {what} | {sum(outcome.tries for outcome in own)} | {sum(bool(outcome.lost) for outcome in own)} |")
    print(*(text for outcome in outcomes for text in outcome.lost), sep="\n")


if __name__ == "__main__":
    main()

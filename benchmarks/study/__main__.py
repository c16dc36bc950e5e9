"""What unlabeled images are worth: arms x seeds on the embedded kanji, one table and one figure.

    python benchmarks/study                                       # all arms, three seeds, on the test classes
    python benchmarks/study --arms sup,semi --seeds 0 --eval kanji_validation.parquet

All arms of a group take the same labeled steps with the same batches. A finished run is not repeated: delete its folder
to do so. To choose settings, evaluate on characters that no embedded file holds (scripts/build_kanji.py --validation).
Two runs at a time, one core each, in bf16 where the CPU multiplies it.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from arms import ARMS, BUDGET, UNLABELED
from figures import Points, draw_bars, draw_budgets
from sources import FROM_ORACLE, MADE

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "RESULTS.md"
FIGURE, BUDGET_FIGURE = ROOT / "docs" / "study.png", ROOT / "docs" / "budget.png"


class Score(NamedTuple):
    """Of one run, 0..1."""

    recall: float
    map_at_r: float


class Run(NamedTuple):
    """One arm with one seed."""

    scores: dict[str, Score]
    """By model: frozen, student, teacher."""
    minutes: float
    """Of one core."""


def folder_of(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a run is kept."""
    return Path(options.output) / f"{re.sub(r'[^a-z0-9]+', '-', arm.lower()).strip('-')}-{seed}"


def is_done(arm: str, seed: int, options: argparse.Namespace) -> bool:
    """Whether a run was finished before."""
    return (folder_of(arm, seed, options) / "done.json").exists()


def run(arm: str, seed: int, options: argparse.Namespace) -> Run:
    """Trains one arm with one seed, unless it is there already."""
    folder = folder_of(arm, seed, options)
    done = folder / "done.json"
    if not done.exists():
        made = {key: make(Path(options.output)) for key, make in options.made.items() if f"{{{key}}}" in ARMS[arm]}
        arguments = ARMS[arm].format(oracle=options.oracle, **made)
        if "--eval" not in arguments:
            arguments += f" --eval {options.eval}"
        if "--backbone" not in arguments:
            arguments += " --backbone tiny-resnet --augment glyph"
        flags = ["--eval-every", "0", "--save-every", "0", "--num-workers", "0", "--mixed-precision", "bf16"]
        flags += ["--seed", str(seed), "--output-dir", str(folder), *options.extra]
        flags += ["--augment", "glyph", *(["--overwrite"] if folder.exists() else [])]
        start = time.monotonic()
        subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *arguments.split(), *flags],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        done.write_text(json.dumps({"minutes": (time.monotonic() - start) / 60}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {line["model"]: Score(line["recall@1"], line["map@r"]) for line in lines if "model" in line}
    student = scores["student"]
    print(f"{arm}, seed {seed}: recall@1 {student.recall:.4f}, MAP@R {student.map_at_r:.4f}", flush=True)
    return Run(scores, json.loads(done.read_text())["minutes"])


def points_of(found: list[Run]) -> Points:
    """Of one arm."""
    metrics = dict(zip(("recall@1", "MAP@R"), Score._fields, strict=True))
    return Points(
        {name: 100 * getattr(found[0].scores["frozen"], field) for name, field in metrics.items()},
        {name: [100 * getattr(one.scores["student"], field) for one in found] for name, field in metrics.items()},
    )


def table(runs: dict[str, list[Run]]) -> str:
    """Markdown: mean and half the spread (largest minus smallest) over seeds, in percent."""
    rows = ["| | seeds | recall@1 | MAP@R | teacher: recall@1 | MAP@R | minutes |", "|---|---|---|---|---|---|---|"]
    first = next(iter(runs.values()))[0].scores["frozen"]
    rows.append(f"| frozen backbone | | {100 * first.recall:.1f} | {100 * first.map_at_r:.1f} | | | |")
    for arm, found in runs.items():
        cells = [
            _cell([getattr(one.scores[model], field) for one in found])
            for model in ("student", "teacher")
            for field in Score._fields
        ]
        rows.append(
            f"| {arm} | {len(found)} | {' | '.join(cells)} | {statistics.mean(one.minutes for one in found):.0f} |"
        )
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    spread = f" ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def write(text: str, marker: str) -> None:
    """Replaces what docs/RESULTS.md holds between the lines of a marker."""
    page = RESULTS.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(page), f"{RESULTS} has no <!-- {marker} -->"
    RESULTS.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page), encoding="utf-8")


def main() -> None:
    """Runs what is asked for and prints the table; with --write it also goes to docs/RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", help=f"comma-separated or a group's beginning, among: {'; '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--eval", default="kanji:test")
    parser.add_argument("--oracle", help="labeled file of all 500 classes: scripts/build_kanji.py --oracle")
    parser.add_argument("--output", default=str(ROOT / "runs" / "study"))
    parser.add_argument("--finished", action="store_true", help="run nothing: show what is there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--write", metavar="MARKER", help="put the table into docs/RESULTS.md at <!-- MARKER -->")
    parser.add_argument("--figure", action="store_true", help=f"draw {FIGURE.name} and {BUDGET_FIGURE.name}")
    options, options.extra = parser.parse_known_args()
    arms = [arm for arm in ARMS if options.arms is None or arm in options.arms.split(";")]
    from_oracle = re.compile(r"oracle|of 500 classes")
    arms = [arm for arm in arms if options.oracle or options.finished or not from_oracle.search(arm)]
    Path(options.output).mkdir(parents=True, exist_ok=True)
    options.made = dict(MADE)
    if options.oracle:
        options.made |= {key: partial(make, oracle=options.oracle) for key, make in FROM_ORACLE.items()}
    for make in options.made.values():
        make(Path(options.output))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {
            arm: [pool.submit(run, arm, s, options) for s in seeds if not options.finished or is_done(arm, s, options)]
            for arm in arms
        }
        runs = {arm: [one.result() for one in found] for arm, found in waiting.items() if found}
    print(table(runs))
    if options.write:
        write(table(runs), options.write)
    if options.figure:
        points = {arm: points_of(found) for arm, found in runs.items()}
        budgets = re.compile(r"\d (labeled classes|unlabeled images): |of 500 classes")
        draw_bars({arm: found for arm, found in points.items() if not budgets.search(arm)}, FIGURE)
        labeled = {
            command: {count: f"{count} labeled classes: {command}" for count in BUDGET} | {20: f"{command}, 500 steps"}
            for command in ("sup", "semi")
        }
        unlabeled = {
            "semi": {count: f"{count:,} unlabeled images: semi" for count in UNLABELED} | {10_560: "semi"},
            "semi, small neighborhoods": {
                count: f"{count:,} unlabeled images: semi, small neighborhoods" for count in UNLABELED[:2]
            },
        }
        draw_budgets(
            points,
            {"labeled classes of 22 images, 500 steps": labeled, "unlabeled images, 1,000 steps": unlabeled},
            BUDGET_FIGURE,
        )


if __name__ == "__main__":
    main()

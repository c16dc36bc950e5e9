"""What unlabeled pictures are worth: arms x seeds on the embedded kanji, one table and one figure.

    python benchmarks/study.py                                       # all arms, three seeds, on the test classes
    python benchmarks/study.py --arms sup,semi --seeds 0 --eval kanji_validation.parquet

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

import numpy as np
from study_figures import Points, draw_bars, draw_budgets

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "RESULTS.md"
FIGURE, BUDGET_FIGURE = ROOT / "docs" / "study.png", ROOT / "docs" / "budget.png"
EMBEDDED = ROOT / "stml_semi" / "data" / "embedded"
# Typefaces (numbers in the list of scripts/build_kanji.py) that imitate handwriting or brush; the others are printed.
HANDWRITTEN = (2, 3, 4, 15, 16, 17, 18)
NUM_TYPEFACES = 22

# What the kanji get by default (data/benchmarks.py and TrainConfig) is not repeated here.
SEMI = "semi --labeled kanji --unlabeled kanji-more"
PUBLISHED = "--relations batch --sigma 3"
ARMS: dict[str, str] = {
    "sup": "sup --labeled kanji --max-steps 1000",
    "sup, 500 steps": "sup --labeled kanji --max-steps 500",
    "sup, 1,500 steps": "sup --labeled kanji --max-steps 1500",
    "null control: labeled pictures, labels hidden": "semi --labeled kanji --unlabeled kanji:train --max-steps 1000",
    # So weak an unlabeled term leaves the labels alone with the network: their learning rate suits it.
    "semi as published: weight 1": f"{SEMI} {PUBLISHED} --balance fixed --learning-rate 1e-4 --max-steps 1000",
    "semi, balanced": f"{SEMI} {PUBLISHED} --max-steps 1000",
    "semi, balanced, sigma calibrated": f"{SEMI} --relations batch --max-steps 1000",
    "semi, 500 steps": f"{SEMI} --max-steps 500",
    "semi": f"{SEMI} --max-steps 1000",
    "semi, 1,500 steps": f"{SEMI} --max-steps 1500",
    "semi, 2,000 steps": f"{SEMI} --max-steps 2000",
    "semi, labeled pictures in the pool too": f"{SEMI},kanji:train --max-steps 1000",
    "oracle: all 500 classes labeled": "sup --labeled {oracle} --labeled-batch-size 120 --learning-rate 3e-4 "
    "--max-steps 3000",
    "unsup": "unsup --unlabeled kanji-more --max-steps 300",
    "random weights: sup": "sup --labeled kanji --backbone {random} --learning-rate 1e-3 --max-steps 500",
    "random weights: semi": f"{SEMI} --backbone {{random}} --max-steps 500",
    "labels on printed typefaces only: sup": "sup --labeled {printed} --eval {handwritten} --max-steps 500",
    "labels on printed typefaces only: semi": "semi --labeled {printed} --unlabeled kanji-more --eval {handwritten} "
    "--max-steps 500",
    "labels on printed typefaces only: sup, 1,000 steps": "sup --labeled {printed} --eval {handwritten} "
    "--max-steps 1000",
    "labels on printed typefaces only: semi, 1,500 steps": "semi --labeled {printed} --unlabeled kanji-more "
    "--eval {handwritten} --max-steps 1500",
    "half of the pool is foreign: semi": f"{SEMI},{{foreign}} --max-steps 500",
    "half of the pool is foreign: semi, relevance 0.5": f"{SEMI},{{foreign}} --relevance 0.5 --max-steps 500",
}
BUDGET = (2, 5, 10)
for _count in BUDGET:
    _few = f"--labeled {{few{_count}}} --labeled-batch-size {4 * _count} --max-steps 500"
    ARMS[f"{_count} labeled classes: sup"] = f"sup {_few} --learning-rate 1e-4"
    ARMS[f"{_count} labeled classes: semi"] = f"semi {_few} --unlabeled kanji-more --learning-rate 1e-3"
UNLABELED = (440, 880, 1760, 5280)
for _count in UNLABELED:
    ARMS[f"{_count:,} unlabeled pictures: semi"] = (
        f"semi --labeled kanji --unlabeled {{part{_count}}} --learning-rate 1e-3 --max-steps 1000"
    )
for _count in UNLABELED[:2]:
    ARMS[f"{_count:,} unlabeled pictures: semi, small neighborhoods"] = (
        ARMS[f"{_count:,} unlabeled pictures: semi"] + " --num-neighbors 2 --pool-neighbors 5"
    )


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
        made = {key: make(Path(options.output)) for key, make in MADE.items() if f"{{{key}}}" in ARMS[arm]}
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


def random_backbone(folder: Path) -> Path:
    """tiny-resnet before its pretraining."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    target, source = folder / "random-resnet", ROOT / "stml_semi" / "models" / "embedded" / "tiny-resnet"
    if not target.exists():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(source)).save_pretrained(target)
        AutoImageProcessor.from_pretrained(source).save_pretrained(target)
    return target


def printed(folder: Path) -> Path:
    """The labeled pictures of printed typefaces."""
    return _by_typeface(folder / "printed.parquet", "kanji_train.parquet", handwritten=False)


def handwritten(folder: Path) -> Path:
    """The test pictures of handwriting and brush."""
    return _by_typeface(folder / "handwritten.parquet", "kanji_test.parquet", handwritten=True)


def _by_typeface(target: Path, source: str, *, handwritten: bool) -> Path:
    from datasets import Dataset

    if not target.exists():
        table = Dataset.from_parquet(str(EMBEDDED / source))
        rows = [i for i in range(len(table)) if (i % NUM_TYPEFACES in HANDWRITTEN) == handwritten]
        table.select(rows).to_parquet(target)
    return target


def few(folder: Path, count: int) -> Path:
    """The labeled pictures of the first classes."""
    from datasets import Dataset

    target = folder / f"few-{count}.parquet"
    if not target.exists():
        table = Dataset.from_parquet(str(EMBEDDED / "kanji_train.parquet"))
        kept = sorted(set(table["label"]))[:count]
        table.select([i for i, label in enumerate(table["label"]) if label in kept]).to_parquet(target)
    return target


def part(folder: Path, count: int) -> Path:
    """Random unlabeled pictures; fewer are among more."""
    from datasets import Dataset

    target = folder / f"part-{count}.parquet"
    if not target.exists():
        table = Dataset.from_parquet(str(EMBEDDED / "kanji_more.parquet"))
        table.select(np.sort(np.random.default_rng(0).permutation(len(table))[:count])).to_parquet(target)
    return target


def foreign(folder: Path) -> Path:
    """As many pictures as kanji-more has, of other things: digits, pieces of photographs, noise."""
    from datasets import Dataset, Features, Image
    from PIL import Image as Pictures
    from sklearn.datasets import load_digits, load_sample_images

    target = folder / "foreign.parquet"
    if not target.exists():
        rng = np.random.default_rng(0)
        digits = [
            255 - np.kron(digit.reshape(8, 8), np.ones((4, 4))) * 15.9 for digit in load_digits(return_X_y=True)[0]
        ]
        photographs = [np.asarray(Pictures.fromarray(photo).convert("L")) for photo in load_sample_images().images]
        pieces = []
        for _ in range(6_000):
            photo = photographs[rng.integers(len(photographs))]
            side = int(rng.integers(32, 200))
            top, left = (int(rng.integers(0, size - side)) for size in photo.shape)
            piece = Pictures.fromarray(photo[top : top + side, left : left + side])
            pieces.append(np.asarray(piece.resize((32, 32), Pictures.Resampling.BILINEAR)))
        coarse = [
            rng.integers(0, 256, (n, n)).astype(np.uint8) for n in rng.integers(2, 33, 10_560 - 6_000 - len(digits))
        ]
        noise = [np.asarray(Pictures.fromarray(c).resize((32, 32), Pictures.Resampling.BICUBIC)) for c in coarse]
        pictures = [Pictures.fromarray(x.astype(np.uint8)) for x in (*digits, *pieces, *noise)]
        Dataset.from_dict({"image": pictures}, features=Features({"image": Image()})).to_parquet(target)
    return target


MADE = {"random": random_backbone, "printed": printed, "handwritten": handwritten, "foreign": foreign}
MADE |= {f"few{count}": partial(few, count=count) for count in BUDGET}
MADE |= {f"part{count}": partial(part, count=count) for count in UNLABELED}


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
    arms = [arm for arm in arms if options.oracle or options.finished or not arm.startswith("oracle")]
    Path(options.output).mkdir(parents=True, exist_ok=True)
    for make in MADE.values():
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
        budgets = re.compile(r"\d (labeled classes|unlabeled pictures): ")
        draw_bars({arm: found for arm, found in points.items() if not budgets.search(arm)}, FIGURE)
        labeled = {
            command: {count: f"{count} labeled classes: {command}" for count in BUDGET} | {20: f"{command}, 500 steps"}
            for command in ("sup", "semi")
        }
        unlabeled = {
            "semi": {count: f"{count:,} unlabeled pictures: semi" for count in UNLABELED} | {10_560: "semi"},
            "semi, small neighborhoods": {
                count: f"{count:,} unlabeled pictures: semi, small neighborhoods" for count in UNLABELED[:2]
            },
        }
        draw_budgets(
            points,
            {"labeled classes of 22 pictures, 500 steps": labeled, "unlabeled pictures, 1,000 steps": unlabeled},
            BUDGET_FIGURE,
        )


if __name__ == "__main__":
    main()

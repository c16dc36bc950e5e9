"""What unlabeled pictures are worth: arms x seeds on the embedded kanji, one table.

    python benchmarks/study.py                                    # test classes, three seeds, all arms
    python benchmarks/study.py --arms sup,semi --eval kanji_validation.parquet --seeds 0

All arms take the same labeled steps with the same batches. A finished run is not repeated: delete its folder to do so.
To choose settings, evaluate on characters that no embedded file holds (scripts/build_kanji.py --validation).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "RESULTS.md"

# Learning rates were chosen on validation classes, among 1e-4, 3e-4 and 1e-3, for each arm by itself.
SEMI = ["semi", "--labeled", "kanji", "--unlabeled", "kanji-more", "--learning-rate", "3e-4"]
ARMS: dict[str, list[str]] = {
    "sup": ["sup", "--labeled", "kanji", "--learning-rate", "1e-4"],
    "sup at the learning rate of semi": ["sup", "--labeled", "kanji", "--learning-rate", "3e-4"],
    "semi": SEMI,
    "semi, weight 1 as published": [*SEMI, "--balance", "fixed", "--unlabeled-weight", "1"],
    "null control (labeled pictures, labels hidden)": [*SEMI, "--unlabeled", "kanji:train"],
    "unsup": ["unsup", "--unlabeled", "kanji-more", "--learning-rate", "3e-4"],
}


class Score(NamedTuple):
    """Of one run, 0..1."""

    recall: float
    map_at_r: float


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Score]:
    """Trains one arm with one seed, unless it is there already: model (frozen, student, teacher) -> score."""
    name = re.sub(r"[^a-z0-9]+", "-", arm.lower())
    folder = Path(options.output) / f"{name}-{seed}"
    done = folder / "done.json"
    if not done.exists():
        flags = ["--eval", options.eval, "--eval-every", "0", "--save-every", "0", "--max-steps", str(options.steps)]
        command = [sys.executable, str(ROOT / "cli.py"), *ARMS[arm], *flags, *options.extra]
        command += ["--seed", str(seed), "--output-dir", str(folder)]
        start = time.monotonic()
        subprocess.run([*command, *(["--overwrite"] if folder.exists() else [])], check=True)
        done.write_text(json.dumps({"seconds": time.monotonic() - start}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["model"]: Score(line["recall@1"], line["map@r"]) for line in lines if "model" in line}


def table(scores: dict[str, list[dict[str, Score]]]) -> str:
    """Markdown: mean and spread (largest minus smallest) over seeds, in percent."""
    rows = ["| | recall@1 | MAP@R | recall@1 of the teacher | MAP@R of the teacher |", "|---|---|---|---|---|"]
    first = next(iter(scores.values()))[0]["frozen"]
    rows.append(f"| frozen backbone | {100 * first.recall:.1f} | {100 * first.map_at_r:.1f} | | |")
    for arm, runs in scores.items():
        cells = [
            _cell([getattr(scored[model], field) for scored in runs])
            for model in ("student", "teacher")
            for field in ("recall", "map_at_r")
        ]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {50 * (max(values) - min(values)):.1f}"


def write(text: str, marker: str) -> None:
    """Replaces what docs/RESULTS.md holds between the lines of a marker."""
    page = RESULTS.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(page), f"{RESULTS} has no <!-- {marker} -->"
    RESULTS.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page), encoding="utf-8")


def main() -> None:
    """Runs what is asked for and prints the table; with --write it also goes to docs/RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(["sup", "semi"]), help=f"among: {'; '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--eval", default="kanji:test")
    parser.add_argument("--output", default=str(ROOT / "runs" / "study"))
    parser.add_argument("--write", metavar="MARKER", help="put the table into docs/RESULTS.md at <!-- MARKER -->")
    options, extra = parser.parse_known_args()
    options.extra = extra
    scores: dict[str, list[dict[str, Score]]] = {}
    for arm in ARMS if options.arms == "all" else options.arms.split(","):
        scores[arm] = [run(arm, int(seed), options) for seed in options.seeds.split(",")]
        for seed, result in zip(options.seeds.split(","), scores[arm], strict=True):
            student = result["student"]
            print(f"{arm}, seed {seed}: recall@1 {student.recall:.4f}, MAP@R {student.map_at_r:.4f}", flush=True)
    print(table(scores))
    if options.write:
        write(table(scores), options.write)


if __name__ == "__main__":
    main()

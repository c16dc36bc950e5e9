"""Labels that `suggest` asks for against others: rounds of labels, `semi` trained anew after each.

    python benchmarks/suggest.py DATA                         # classes among the first choices, on the backbone
    python benchmarks/suggest.py DATA --eval EVAL --seeds 0,1,2

DATA is a table whose images all have labels; a strategy sees only those it asked for. It asks for an image and its
nearest ones, as the page of `suggest` shows them, and gets the labels of those that are of the same class. The first
round knows nothing but the backbone, later ones the model of the round before. EVAL has other classes. Two runs at a
time, one core each.

random      any images
typiclust   typical images of the largest clusters without a label, on the frozen backbone (Hacohen et al., ICML 2022)
suggest     ours
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor

from stml_semi.curation.coverage import choose, survey
from stml_semi.data.sources.open_source import open_source
from stml_semi.models.evaluation import embed_table
from stml_semi.neighbors import nearest_neighbors
from stml_semi.sharing.load import load

ROOT = Path(__file__).parents[1]
Rows = NDArray[np.int64]
Strategy = Callable[[Tensor, Tensor, Rows, int, int], list[int]]
"""Frozen and trained embeddings (N, d), rows with labels, how many more, and a seed; gives rows."""


def at_random(frozen: Tensor, trained: Tensor, known: Rows, count: int, seed: int) -> list[int]:
    """Any images."""
    left = np.setdiff1d(np.arange(len(frozen)), known)
    return np.random.default_rng((seed, len(known))).choice(left, count, replace=False).tolist()


def typiclust(frozen: Tensor, trained: Tensor, known: Rows, count: int, seed: int) -> list[int]:
    """TypiClust: K-means with a cluster per label, at most 500; 20 neighbors."""
    from sklearn.cluster import KMeans

    centers = min(len(known) + count, 500)
    cluster = KMeans(centers, random_state=seed, n_init="auto").fit_predict(frozen.numpy())
    typical = nearest_neighbors(frozen, 20).similarities.mean(1).numpy()
    chosen: list[int] = []
    for _ in range(count):
        taken = np.bincount(cluster[[*known, *chosen]], minlength=centers)
        sizes = np.bincount(cluster, minlength=centers)
        best = min(range(centers), key=lambda one: (taken[one], -sizes[one]))
        members = np.setdiff1d(np.flatnonzero(cluster == best), [*known, *chosen])
        if not len(members):
            members = np.setdiff1d(np.arange(len(frozen)), [*known, *chosen])
        chosen.append(int(members[typical[members].argmax()]))
    return chosen


def suggested(frozen: Tensor, trained: Tensor, known: Rows, count: int, seed: int) -> list[int]:
    """What `suggest` does."""
    left = np.setdiff1d(np.arange(len(trained)), known)
    near = survey(trained[left])
    return left[[one.row for one in choose(near, count, near.covered(trained[known]))]].tolist()


def with_similar(chosen: list[int], embeddings: Tensor, known: Rows, classes: NDArray[np.generic], count: int) -> Rows:
    """Chosen images, and those of their nearest ones that somebody would confirm."""
    near = nearest_neighbors(
        embeddings, count, queries=embeddings[chosen], exclude=torch.tensor(chosen)
    ).indices.numpy()
    rows = dict.fromkeys(chosen)
    for row, others in zip(chosen, near, strict=True):
        rows |= {int(other): None for other in others if classes[other] == classes[row]}
    return np.setdiff1d([*rows], known)


STRATEGIES: dict[str, Strategy] = {
    "random": at_random,
    "typiclust": typiclust,
    "suggest": suggested,
}


def embed(model: str, data: str) -> Tensor:
    """(N, d) of unit length."""
    retriever, table = load(model), open_source(data, flag="data", labels="required")
    found = embed_table(table, retriever, retriever.processor, batch_size=256)
    return torch.nn.functional.normalize(found.embeddings.float().cpu(), dim=1)


def look(options: argparse.Namespace) -> None:
    """How many classes are among the first choices, and how many of the similar images are of the same class."""
    classes = np.array(parquet.read_table(options.data, columns=["label"])["label"].to_pylist())
    frozen, none = embed(options.backbone, options.data), np.zeros(0, np.int64)
    for name in options.strategies.split(","):
        for count in (50, 100, 250):
            chosen = STRATEGIES[name](frozen, frozen, none, count, 0)
            confirmed = len(with_similar(chosen, frozen, none, classes, options.similar)) - count
            print(
                f"{name}, {count}: {len(set(classes[chosen]))} classes, {confirmed} similar images confirmed",
                flush=True,
            )


def follow(name: str, seed: int, options: argparse.Namespace) -> None:
    """All rounds of a strategy with one seed; a line for each, and a file that is kept."""
    torch.set_num_threads(1)
    folder = Path(options.output) / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    table = parquet.read_table(options.data)
    classes = np.array(table["label"].to_pylist())
    frozen = trained = embed(options.backbone, options.data)
    known = np.zeros(0, np.int64)
    for number in range(options.rounds):
        run, done = folder / f"round-{number}", folder / f"round-{number}.json"
        if done.exists():
            known = np.array(json.loads(done.read_text())["rows"])
            trained = embed(str(run), options.data)
            continue
        chosen = STRATEGIES[name](frozen, trained, known, options.count, seed)
        seen = frozen if name == "typiclust" else trained
        known = np.append(known, with_similar(chosen, seen, known, classes, options.similar))
        parquet.write_table(table.take(known), folder / "labeled.parquet")
        command = f"semi --labeled {folder}/labeled.parquet --unlabeled {options.data} --eval {options.evaluated} "
        command += f"--backbone {options.backbone} --output-dir {run} --overwrite --seed {seed} --num-workers 0 "
        command += f"--eval-every 0 --save-every 0 --no-report --mixed-precision bf16 {options.flags}"
        said = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *command.split()],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if said.returncode:
            raise SystemExit(said.stderr)
        trained = embed(str(run), options.data)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        score = {line["model"]: [line["recall@1"], line["map@r"]] for line in lines if "model" in line}
        found = {"labels": len(known), "classes": len(set(classes[known])), **score}
        done.write_text(json.dumps({**found, "rows": known.tolist()}))
        recall, precision = (100 * value for value in score["student"])
        print(f"{name}, seed {seed}: {found['labels']} labels of {found['classes']} classes: ", end="")
        print(f"{recall:.1f} / {precision:.1f}", flush=True)


def main() -> None:
    """Runs all strategies with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--eval", dest="evaluated")
    parser.add_argument("--backbone", default="tiny-resnet")
    parser.add_argument("--flags", default="--augment glyph --learning-rate 1e-3 --max-steps 200")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10, help="images asked for in a round")
    parser.add_argument("--similar", type=int, default=4, help="shown with each")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", default="runs/suggest")
    options = parser.parse_args()
    if not options.evaluated:
        look(options)
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        for future in [
            pool.submit(follow, name, seed, options)
            for seed in map(int, options.seeds.split(","))
            for name in options.strategies.split(",")
        ]:
            future.result()


if __name__ == "__main__":
    main()

"""How much trust calibration claims for a pool whose classes are known, and how much is due.

    python benchmarks/trust.py DATA --classes 20 --each 3             # the pool has all other images
    python benchmarks/trust.py DATA --classes 20 --each 22 --disjoint --unlabeled 440

DATA is a table whose images all have labels; `--each` images of some classes keep theirs. `semi` trains until it has
measured, at the end of its label warm-up. What is due is what a regression on the true classes of the pool says.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

import stml_semi
from stml_semi.config import TrainConfig
from stml_semi.losses.evidence import Surroundings, Weights, fit
from stml_semi.training import neighborhoods
from stml_semi.training.calibration import LabeledImages, calibrate, judge
from stml_semi.training.joint_table import sample, search


class _Measured(Exception):
    """Ends the run: what was claimed, and what is due."""


def main() -> None:
    """Divides the table, trains, and prints a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--disjoint", action="store_true", help="no other images of the labeled classes in the pool")
    parser.add_argument("--unlabeled", type=int, help="random images of the pool, default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="tiny-resnet")
    parser.add_argument("--max-steps", type=int, default=1000)
    options = parser.parse_args()

    table = Dataset.from_parquet(options.data)
    classes = np.asarray(table["label"])
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(table))
    chosen = rng.permutation(np.unique(classes))[: options.classes]
    labeled = np.sort(np.concatenate([order[classes[order] == one][: options.each] for one in chosen]))
    pool = np.setdiff1d(order, labeled)
    pool = pool[~np.isin(classes[pool], chosen)] if options.disjoint else pool
    pool = np.sort(rng.permutation(pool)[: options.unlabeled])
    truth = torch.from_numpy(np.unique(classes[pool], return_inverse=True)[1])

    def measure(
        config: TrainConfig, unit: Tensor, held_out: LabeledImages, others: LabeledImages, *, seed: int
    ) -> Weights | None:
        assert len(unit) == len(truth), "some images cannot be read"
        weights = calibrate(config, unit, held_out, others, seed=seed)
        near = search(unit, config.pool_neighbors - 1)
        every = torch.arange(len(unit))
        all_of_it = Surroundings(unit, torch.cat([every[:, None], near.indices], 1), near.similarities.mean(1))
        rows = sample(len(unit), unit.device)
        nearest = near.indices[rows]
        evidence = all_of_it.evidence(rows, nearest, expand=config.num_neighbors)
        due = fit(evidence, truth[rows, None] == truth[nearest])
        raise _Measured(weights and judge(config, weights, all_of_it), judge(config, due, all_of_it))

    neighborhoods.calibrate = measure
    with tempfile.TemporaryDirectory() as folder:
        table.select(labeled).to_parquet(Path(folder) / "labeled.parquet")
        table.select(pool).remove_columns("label").to_parquet(Path(folder) / "pool.parquet")
        try:
            stml_semi.train(
                labeled=f"{folder}/labeled.parquet",
                unlabeled=f"{folder}/pool.parquet",
                backbone=options.backbone,
                augment="glyph",
                max_steps=options.max_steps,
                seed=options.seed,
                mixed_precision="no",
                num_workers=0,
                output_dir=f"{folder}/run",
            )
        except _Measured as found:
            claimed, due = found.args
            print("claimed", "nothing" if claimed is None else f"{claimed:.0%}", f"due {due:.0%}")


if __name__ == "__main__":
    main()

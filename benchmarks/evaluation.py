"""Retrieval metrics against pytorch-metric-learning's AccuracyCalculator: time, memory, and the same numbers.

    python benchmarks/evaluation.py                    a minute
    python benchmarks/evaluation.py --rows 60000       the size of the Stanford Online Products test split

Times are CPU time of one thread on a CPU, wall time on a GPU: ratios carry over to other machines, seconds do not.
"""

import argparse
import time
from typing import NamedTuple

import torch
from neighbors import Measured, in_a_fresh_process, measure
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor

from stml_semi.metrics import retrieval_metrics


class Setting(NamedTuple):
    rows: int
    dims: int
    per_class: int
    spread: float
    batch: int
    device: str


def labeled_embeddings(setting: Setting) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(setting.rows) // setting.per_class
    centers = torch.randn(int(labels[-1]) + 1, setting.dims, generator=generator)
    embeddings = torch.randn(setting.rows, setting.dims, generator=generator).mul_(setting.spread)
    embeddings = torch.nn.functional.normalize(embeddings.add_(centers[labels]))
    return embeddings.to(setting.device), labels.to(setting.device)


def ours(embeddings: Tensor, labels: Tensor, setting: Setting) -> dict[str, float]:
    return retrieval_metrics(embeddings, labels)


def pytorch_metric_learning(embeddings: Tensor, labels: Tensor, setting: Setting) -> dict[str, float]:
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=embeddings.device,
        knn_func=CustomKNN(CosineSimilarity(), batch_size=setting.batch),
        kmeans_func=lambda *_: None,
    )
    values = calculator.get_accuracy(embeddings, labels)
    return {
        "recall@1": values["precision_at_1"],
        "r_precision": values["r_precision"],
        "map@r": values["mean_average_precision_at_r"],
    }


WAYS = {"pytorch-metric-learning": pytorch_metric_learning, "retrieval_metrics": ours}


def run(way: str, setting: Setting) -> Measured:
    embeddings, labels = labeled_embeddings(setting)
    few = slice(0, 200 * setting.per_class)
    WAYS[way](embeddings[few], labels[few], setting)  # Libraries load what they need at the first call.
    return measure(lambda: WAYS[way](embeddings, labels, setting), setting.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--spread", type=float, default=4.0, help="noise around class centers of length 1")
    parser.add_argument("--batch", type=int, default=1024, help="queries per product in the reference")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(**vars(parser.parse_args()))
    start = time.perf_counter()
    results = {way: in_a_fresh_process(run, way, setting) for way in WAYS}
    reference = results["pytorch-metric-learning"]
    print(f"{setting.rows} x {setting.dims}, {setting.per_class} per class, {setting.device}\n")
    print(f"{'way':24} {'seconds':>8} {'ratio':>6} {'extra MB':>9} {'recall@1':>9} {'R-prec.':>9} {'MAP@R':>9}")
    for way, result in results.items():
        values = " ".join(f"{result.value[name]:9.6f}" for name in ("recall@1", "r_precision", "map@r"))
        ratio = result.seconds / reference.seconds
        print(f"{way:24} {result.seconds:8.2f} {ratio:6.2f} {result.extra_mb:9.0f} {values}")
    difference = results["retrieval_metrics"].value["map@r"] - reference.value["map@r"]
    print(f"\ndifference in MAP@R: {difference:.1e}; all in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

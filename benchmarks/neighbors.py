"""Exact nearest neighbors against the bare float32 matrix product they stand on.

    python benchmarks/neighbors.py                     a minute
    python benchmarks/neighbors.py --rows 100000       the size of a pool

Times are CPU time of one thread on a CPU, wall time on a GPU: ratios carry over to other machines, seconds do not.
"""

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from stml_semi.neighbors import nearest_neighbors


class Measured(NamedTuple):
    value: Any
    seconds: float
    """CPU time of the one thread, or wall time on a GPU."""
    extra_mb: float
    """Peak memory beyond what was in use before, result included."""


def in_a_fresh_process(function: Callable[..., Measured], *args: Any) -> Measured:
    """Memory that an earlier measurement has left behind would hide what a later one needs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(function: Callable[[], Any], device: str) -> Measured:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        value = function()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Measured(value, seconds, (torch.cuda.max_memory_allocated() - before) / 1e6)
    torch.set_num_threads(1)
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    value = function()
    seconds = time.process_time() - start
    done.set()
    watcher.join()
    return Measured(value, seconds, (peak - before) / 1e6)


class Setting(NamedTuple):
    rows: int
    dims: int
    k: int
    chunk: int
    device: str


def embeddings(setting: Setting) -> Tensor:
    """Ten images per class, as near to one another as trained embeddings are."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(-(-setting.rows // 10), setting.dims, generator=generator)
    noise = torch.randn(setting.rows, setting.dims, generator=generator)
    noise.mul_(0.5).add_(centers.repeat_interleave(10, 0)[: setting.rows])
    return torch.nn.functional.normalize(noise).to(setting.device)


def bare_product(vectors: Tensor, setting: Setting) -> None:
    for part in vectors.split(setting.chunk):
        torch.mm(part, vectors.T)


def product_and_topk(vectors: Tensor, setting: Setting) -> Tensor:
    """Plain float32 search: what the recall is measured against."""
    found = []
    for start in range(0, len(vectors), setting.chunk):
        scores = vectors[start : start + setting.chunk] @ vectors.T
        scores.diagonal(start).fill_(-torch.inf)
        found.append(scores.topk(setting.k).indices)
    return torch.cat(found)


def ours(dtype: torch.dtype | None) -> Callable[[Tensor, Setting], Tensor]:
    return lambda vectors, setting: nearest_neighbors(vectors, setting.k, matmul_dtype=dtype).indices


WAYS: dict[str, Callable[[Tensor, Setting], Tensor | None]] = {
    "bare float32 product": bare_product,
    "float32 product + topk": product_and_topk,
    "nearest_neighbors, float32": ours(torch.float32),
    "nearest_neighbors, bfloat16": ours(torch.bfloat16),
    "nearest_neighbors, default": ours(None),
}


def run(way: str, setting: Setting) -> Measured:
    vectors = embeddings(setting)
    WAYS[way](vectors[: 2 * setting.chunk], setting)  # Libraries load what they need at the first call.
    measured = measure(lambda: WAYS[way](vectors, setting), setting.device)
    return measured._replace(value=None if measured.value is None else measured.value.cpu().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=1024, help="queries per product in the plain ways")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(**vars(parser.parse_args()))
    start = time.perf_counter()
    results = {way: in_a_fresh_process(run, way, setting) for way in WAYS}
    bare, plain = results["bare float32 product"], results["float32 product + topk"].value
    print(f"{setting.rows} x {setting.dims}, k = {setting.k}, {setting.device}\n")
    print(f"{'way':30} {'seconds':>8} {'ratio':>6} {'recall':>8} {'extra MB':>9}")
    for way, result in results.items():
        recall = "" if result.value is None else f"{_recall(result.value, plain):.6f}"
        ratio = result.seconds / bare.seconds
        print(f"{way:30} {result.seconds:8.2f} {ratio:6.2f} {recall:>8} {result.extra_mb:9.0f}")
    print(f"\nall in {time.perf_counter() - start:.0f} s")


def _recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the plain neighbors that were found."""
    return sum((found == column[:, None]).any(1).sum() for column in expected.T) / expected.size


if __name__ == "__main__":
    main()

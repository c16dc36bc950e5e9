"""What grows with the collection: the work of a step and of a refresh that needs no model, on made-up embeddings.

    python benchmarks/scale.py                                  half an hour on two cores
    python benchmarks/scale.py --live 16384 --ranks 1 8         two minutes
    python benchmarks/scale.py --live 204800 --ranks 1 --all    what is left out otherwise, because it takes long

One process does the share of one of several: nothing is sent, so what collectives take is not in it. Times are CPU time
of one thread; memory is the peak beyond the inputs. The exponent says how a time grows with the images that are live
(1: twice the images take twice as long), and for shared work how it grows with the processes (-1: twice the processes
take half as long).
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from neighbors import Measured, Setting, embeddings, in_a_fresh_process, measure
from torch import Tensor

from stml_semi.data.batches.plan import LabeledPlan, UnlabeledPlan, rows_by_class
from stml_semi.losses.evidence import Surroundings, Weights, affinity, whitening
from stml_semi.losses.neighborhoods import expanded_lengths, neighborhood_overlap, rerank
from stml_semi.metrics import query_scores
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime.distributed import share

_DIMS, _NEIGHBORS, _EXPAND, _BATCH, _STEPS = 128, 25, 5, 120, 50


class Part(NamedTuple):
    """What one of several processes has to do."""

    live: int
    rows: Tensor
    """(N / ranks,) its share."""
    unit: Tensor
    """(N, 128) unit vectors, ten of a class."""

    @property
    def neighborhoods(self) -> Tensor:
        """(N, 25): each image, the others of its class, and strangers; as near ones would be."""
        every = torch.arange(self.live)
        offsets = torch.arange(10)
        alike = (every[:, None] // 10 * 10 + (every[:, None] + offsets) % 10) % self.live
        strangers = torch.randint(self.live, (self.live, _NEIGHBORS - 10), generator=torch.Generator().manual_seed(0))
        return torch.cat([alike, strangers], 1)


def plan(part: Part) -> Callable[[], object]:
    labels = np.random.default_rng(0).integers(part.live // 10, size=part.live)
    near = part.neighborhoods[:, 1:].numpy()

    def run() -> None:
        unlabeled = UnlabeledPlan(np.arange(part.live), near, _BATCH // _EXPAND, _EXPAND)
        labeled = LabeledPlan(rows_by_class(labels, part.live // 10), 40, 3)
        for step in range(_STEPS):
            unlabeled.batch(0, step)
            labeled.rows(0, step)

    return run


def relations(part: Part) -> Callable[[], object]:
    near, weights = part.neighborhoods, Weights(-3.0, 4.0, 5.0)
    surroundings = torch.rand(part.live)

    def run() -> None:
        for step in range(_STEPS):
            rows = torch.randint(part.live, (_BATCH,), generator=torch.Generator().manual_seed(step))
            overlap = neighborhood_overlap(near, rows, expand=_EXPAND)
            affinity(weights, part.unit[rows], surroundings[rows], overlap)

    return run


def neighbors(part: Part) -> Callable[[], object]:
    return lambda: nearest_neighbors(part.unit, _NEIGHBORS - 1, queries=part.unit[part.rows], exclude=part.rows)


def reranking(part: Part) -> Callable[[], object]:
    near = part.neighborhoods
    lengths = torch.ones(part.live)

    def run() -> None:
        expanded_lengths(near, expand=_EXPAND, rows=part.rows)
        rerank(near, lengths, expand=_EXPAND, rows=part.rows)

    return run


def evidence(part: Part) -> Callable[[], object]:
    """Of the pairs that trust is judged by."""
    near = part.neighborhoods
    around = Surroundings(part.unit, near, torch.rand(part.live))
    rows = torch.randperm(part.live, generator=torch.Generator().manual_seed(0))[:2048]
    return lambda: around.evidence(rows, near[rows, 1:], expand=_EXPAND)


def relevance(part: Part) -> Callable[[], object]:
    domain = part.unit[: part.live // 4]
    return lambda: nearest_neighbors(domain, 1, queries=part.unit[part.rows])


def overlap(part: Part) -> Callable[[], object]:
    signs = torch.randint(2, (part.live, 256), generator=torch.Generator().manual_seed(0)).float().mul_(2).sub_(1)
    gallery, own = signs[: part.live // 4].clone(), signs[part.rows]
    return lambda: [nearest_neighbors(gallery, 1, queries=some) for some in own.split(8192)]


def evaluation(part: Part) -> Callable[[], object]:
    labels = torch.arange(part.live) // 10
    return lambda: query_scores(part.unit, labels, rows=part.rows)


def whiten(part: Part) -> Callable[[], object]:
    return lambda: whitening(part.unit, _DIMS)(part.unit)


class Work(NamedTuple):
    title: str
    make: Callable[[Part], Callable[[], object]]
    times: int = 1
    """Steps that are measured together."""
    shared: bool = True
    """Between processes; what is not is done by each."""


WORKS = (
    Work("plan, a step", plan, _STEPS, shared=False),
    Work("relations, a step", relations, _STEPS, shared=False),
    Work("whitening", whiten, shared=False),
    Work("trust", evidence, shared=False),
    Work("neighbors", neighbors),
    Work("reranking", reranking),
    Work("--relevance", relevance),
    Work("--exclude-overlap", overlap),
    Work("evaluation", evaluation),
)


def run(number: int, live: int, ranks: int) -> Measured:
    """One share of one work."""
    own = share(live, rank=ranks - 1, world_size=ranks)
    vectors = embeddings(Setting(live, _DIMS, k=1, chunk=1, device="cpu"))
    work = WORKS[number]
    small = Part(1024, torch.arange(1024), vectors[:1024])
    work.make(small)()  # Libraries load what they need at the first call.
    measured = measure(work.make(Part(live, torch.arange(live)[own], vectors)), "cpu")
    return measured._replace(value=None, seconds=measured.seconds / work.times)


def exponents(lines: Iterable[list[tuple[int, float]]]) -> str:
    """Slopes of lines through (log x, log y): the least and the greatest."""
    logs = [np.log(np.asarray(points)) for points in lines if len(points) > 1]
    slopes = [f"{np.polyfit(x[:, 0], x[:, 1], 1)[0]:.2f}" for x in logs]
    return " to ".join(sorted({min(slopes, key=float), max(slopes, key=float)}, key=float)) if slopes else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", type=int, nargs="+", default=[16_384, 65_536, 204_800])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--all", action="store_true", help="also what one process takes more than minutes for")
    options = parser.parse_args()
    start = time.perf_counter()
    print(f"{'work':18} {'live':>7} {'processes':>9} {'seconds':>9} {'MB':>6}")
    found: dict[tuple[int, int, int], Measured] = {}
    for number, work in enumerate(WORKS):
        for live, ranks in itertools.product(options.live, options.ranks if work.shared else options.ranks[:1]):
            if work.shared and live / ranks > 2**16 and not options.all:
                continue
            measured = found[number, live, ranks] = in_a_fresh_process(run, number, live, ranks)
            who = ranks if work.shared else "each"
            print(f"{work.title:18} {live:7} {who:>9} {measured.seconds:9.4f} {measured.extra_mb:6.0f}", flush=True)
    print(f"\n{'exponent of the time':22} {'with the images':>15} {'with the processes':>18}")
    for number, work in enumerate(WORKS):

        def line(by: str, fixed: int, number: int = number) -> list[tuple[int, float]]:
            places = [(n, (number, n, fixed) if by == "live" else (number, fixed, n)) for n in getattr(options, by)]
            return [(n, found[place].seconds) for n, place in places if place in found]

        by_live = exponents(line("live", ranks) for ranks in options.ranks)
        by_ranks = exponents(line("ranks", live) for live in options.live)
        print(f"{work.title:22} {by_live:>15} {by_ranks:>18}")
    print(f"\nall in {(time.perf_counter() - start) / 60:.0f} min")


if __name__ == "__main__":
    main()

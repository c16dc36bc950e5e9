"""What a refresh costs beside the embedding, and a step's relations, where the whole collection is known.

    python benchmarks/known_images.py                                     # 20,000 made-up images
    python benchmarks/known_images.py --images 325846 2686843 --device cuda  # iNaturalist 2018 and 2021

The images are made up: classes as long-tailed as those of iNaturalist, 192 dimensions. Times are in
seconds, of one process; memory is the most that the device had to hold, beside the images themselves.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stml_semi.data.batches.live_images import Live, LiveTable
from stml_semi.data.batches.pool import Calibrated, Neighborhoods, UnlabeledPool
from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.losses.evidence import DIMENSIONS, Surroundings, whitening
from stml_semi.run_folder.recipe import build_config
from stml_semi.training.calibration import MOST_OTHERS, LabeledImages, calibrate, judge
from stml_semi.training.known_images import DIMENSIONS as KNOWN
from stml_semi.training.neighborhoods import find_neighborhoods


def made_up(count: int, device: str) -> Tensor:
    """(count, 192): classes of 1 to about 1,000 images."""
    generator = torch.Generator(device).manual_seed(0)
    num_classes = max(count // 57, 2)  # 325,846 images of 5,690 species.
    weights = 1 / torch.arange(1, num_classes + 1, device=device).float() ** 0.7
    labels = torch.multinomial(weights, count, replacement=True, generator=generator)
    centers = torch.randn(num_classes, KNOWN, device=device, generator=generator)
    parts = [
        torch.nn.functional.normalize(
            centers[part] + torch.randn(len(part), KNOWN, device=device, generator=generator), dim=1
        )
        for part in labels.split(2**16)
    ]
    return torch.cat(parts)


class Clock:
    """Seconds of what is called, by name; the device has ended it by then."""

    def __init__(self, device: str) -> None:
        self.cuda, self.seconds = device.startswith("cuda"), {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        self._wait()
        begun = time.perf_counter()
        found = work()
        self._wait()
        self.seconds[name] = time.perf_counter() - begun
        return found

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def measure(count: int, device: str) -> tuple[dict[str, float], float]:
    """Seconds of each part, and GiB at most."""
    config = build_config({"labeled": "x", "unlabeled": "y"})
    known, clock = made_up(count, device), Clock(device)
    if clock.cuda:
        torch.cuda.reset_peak_memory_stats()
    whiten = clock("whiten", lambda: whitening(known, DIMENSIONS))
    unit = clock("project", lambda: whiten(known))
    rows = np.arange(count)
    found: Neighborhoods = clock("neighbors", lambda: find_neighborhoods(config, rows, unit, 0))
    # CUB's classes, about thirty images each; a fifth of them was not trained on.
    labels = torch.arange(min(3000, count // 4), device=device) // 30
    labeled = LabeledImages(unit[: len(labels)] + 0.1 * unit[-len(labels) :], labels)
    first = LabeledImages(*(part[: len(labels) // 5] for part in labeled))
    others = LabeledImages(*(part[len(labels) // 5 :][:MOST_OTHERS] for part in labeled))
    weights = clock("calibrate, once", lambda: calibrate(config, unit, first, others, seed=0))
    assert weights is not None
    similarity = found.similarity
    assert similarity is not None
    trust = clock("judge", lambda: judge(config, weights, Surroundings(unit, found.compared, similarity)))
    found = found._replace(calibrated=Calibrated(weights, trust, unit, similarity))
    table = ImageTable("made up", paths_dataset([""] * count), None, ())
    pool = UnlabeledPool(
        LiveTable(table, seed=0, pool_size=config.pool_size),
        seed=0,
        queries_per_batch=config.queries_per_batch,
        num_neighbors=config.num_neighbors,
        refresh_every=100,
        first_step=0,
    )

    def given(live: Live, refresh: int, last: object) -> Neighborhoods:
        return found

    plan = clock("to the host", lambda: pool.plan(0, given))
    index = clock("first batch", lambda: torch.from_numpy(plan.batch(0, 0)).to(device))
    clock("first relations", lambda: pool.relations(index, num_views=config.num_views))
    clock("ten batches / 10", lambda: [plan.batch(0, step) for step in range(1, 11)])
    clock("ten relations / 10", lambda: [pool.relations(index, num_views=config.num_views) for _ in range(10)])
    for name in ("ten batches / 10", "ten relations / 10"):
        clock.seconds[name.removeprefix("ten ").removesuffix(" / 10")] = clock.seconds.pop(name) / 10
    return clock.seconds, torch.cuda.max_memory_allocated() / 2**30 if clock.cuda else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="file for the table, beside the terminal")
    options = parser.parse_args()
    lines: list[str] = []
    for count in options.images:
        seconds, memory = measure(count, options.device)
        if not lines:
            lines += [f"| images | {' | '.join(seconds)} | GiB |", "|---" * (len(seconds) + 2) + "|"]
        lines.append(f"| {count:,} | {' | '.join(f'{value:.3g}' for value in seconds.values())} | {memory:.1f} |")
    print(*lines, sep="\n")
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

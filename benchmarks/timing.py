"""Laps of a step, several ways taking turns: ratios of one run, on a CPU or a GPU."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Laps = dict[str, float]
"""Seconds by name."""


class Setting(NamedTuple):
    model: str
    size: int
    labeled: int
    unlabeled: int
    device: str
    bf16: bool
    compile: bool
    repeats: int
    threads: int


class Clock:
    """Laps of a step."""

    def __init__(self, device: str, threads: int) -> None:
        self.on_gpu = device.startswith("cuda")
        self.now = time.process_time if threads == 1 else time.perf_counter
        self.names: list[str] = []
        self.marks: list[Any] = [self._mark()]

    def lap(self, name: str) -> None:
        """Ends a lap. On a GPU this waits for nothing: the stream keeps the time."""
        self.names.append(name)
        self.marks.append(self._mark())

    def seconds(self) -> Laps:
        if self.on_gpu:
            torch.cuda.synchronize()
            lengths = [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        else:
            lengths = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return dict(zip(self.names, lengths, strict=True))

    def _mark(self) -> Any:
        if not self.on_gpu:
            return self.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def in_turns(ways: dict[str, Callable[[Clock], None]], setting: Setting, repeats: int) -> dict[str, list[Laps]]:
    """Laps of every way, `repeats` times, way after way: what slows the machine down slows them all."""
    laps: dict[str, list[Laps]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    for turn in range(repeats + 1):
        shuffle(order)  # What one way leaves in caches and allocator must not always be found by the same other way.
        for name in order:
            clock = Clock(setting.device, setting.threads)
            ways[name](clock)
            seconds = clock.seconds()
            if turn:  # Libraries and caches warm up in the first turn.
                laps[name].append(seconds)
    return laps


def totals(laps: Sequence[Laps], parts: Sequence[str] | None = None) -> list[float]:
    return [sum(lap[part] for part in parts or lap) for lap in laps]


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))

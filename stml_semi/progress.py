"""What a run says while it works: a bar with loss terms and time left, or plain lines where there is no terminal."""

import sys
import time
from typing import Any, Self

from stml_semi.config import TrainConfig


class RunProgress:
    """Progress on standard error. A bar on a terminal; elsewhere about twenty lines over the whole run."""

    def __init__(self, config: TrainConfig, tables: Any, *, processes: int, enabled: bool) -> None:
        """
        Args:
            config: of the run.
            tables: its pictures, named in the first line.
            processes: how many train together, named there too.
            enabled: only the main process talks.
        """
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(
            stderr=True, quiet=not enabled, highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self.bar = None
        self.max_steps = config.max_steps
        self.started, self.first = time.monotonic(), 0
        self.every = max(config.max_steps // 20, 1)
        self.terms = ""
        if enabled:
            sources = [f"{_size(t)} {kind} images ({t.name})" for kind, t in _named(tables) if t is not None]
            places = f"backbone {config.backbone}; run folder {config.output_dir}"
            self.console.print(f"{', '.join(sources)}; {places}; {processes} process{'es' * (processes > 1)}")
        if enabled and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[terms]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("train", total=config.max_steps, terms="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description="train")
            self.bar.stop()

    def step(self, step: int, line: dict[str, float] | None) -> None:
        """A step is done; `line` is what metrics.jsonl got, if anything."""
        if line is not None:
            self.terms = _terms(line)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description="train", terms=self.terms)
            return
        if not self.first:
            self.started, self.first = time.monotonic(), step
        elif line is not None and (step % self.every < 10 or step == self.max_steps):
            left = (time.monotonic() - self.started) / (step - self.first) * (self.max_steps - step)
            self.console.print(f"step {step}/{self.max_steps} {self.terms} left {left:.0f}s")

    def note(self, message: str) -> None:
        """Something other than a step takes time."""
        if self.bar is not None:
            self.bar.update(self.task, description=message)
        else:
            self.console.print(message)


class Counter:
    """Progress over a known number of pictures on standard error: a bar on a terminal, else about twenty lines."""

    def __init__(self, what: str, total: int, *, enabled: bool) -> None:
        """
        Args:
            what: one word.
            total: pictures.
            enabled: only the main process talks.
        """
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.what, self.total, self.enabled = what, total, enabled
        self.done = self.skipped = self.said = 0
        self.started = time.monotonic()
        console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
        self.bar = None
        if enabled and sys.stderr.isatty():
            self.bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def skip(self, count: int) -> None:
        """Pictures that were done before; they say nothing about the speed."""
        self.skipped += count
        if self.bar is not None:
            self.bar.reset(self.task, total=self.total - self.skipped)
            self.bar.update(self.task, completed=self.done, description=f"{self.what} ({self.skipped} there already)")

    def advance(self, count: int) -> None:
        """Pictures are done."""
        self.done = min(self.done + count, self.total)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
            return
        part = 20 * (self.done + self.skipped) // max(self.total, 1)
        if self.enabled and part > self.said:
            self.said = part
            left = (time.monotonic() - self.started) / self.done * (self.total - self.skipped - self.done)
            print(f"{self.what} {self.done + self.skipped}/{self.total} left {max(left, 0):.0f}s", file=sys.stderr)


def _named(tables: Any) -> list[tuple[str, Any]]:
    return [("labeled", tables.labeled), ("unlabeled", tables.unlabeled), ("evaluation", tables.evaluation)]


def _size(table: Any) -> str:
    return str(len(table)) if hasattr(table, "__len__") else "a stream of"


def _terms(line: dict[str, float]) -> str:
    text = f"labeled {line['labeled_loss']:.3f}"
    if line["relaxed_contrastive"]:
        text += f" contrastive {line['relaxed_contrastive']:.3f} distillation {line['self_distillation']:.4f}"
    bad = f", {line['bad_images']:.0f} bad images" if line["bad_images"] else ""
    return f"{text} {line['images_per_second']:.0f} images/s{bad}"

"""What takes long says so on standard error: a bar with the time left, or plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Self

_LINES = 20
_BAR = 20
"""Width of the bar in columns."""


class Counter:
    """Progress over a known number of things: a bar on a terminal, elsewhere about twenty lines.

    In both the order is the same: count, time left, then as many terms as fit.
    """

    def __init__(self, what: str, total: int, *, enabled: bool) -> None:
        """
        Args:
            what: one word.
            total: images, or steps.
            enabled: only the main process talks.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        from stml_semi.runtime.terminal_text import PlainConsole

        self.what, self.total = what, total
        self.terms: Sequence[str] = ()
        """What there is to say beside the count, the most important first."""
        self.done = self.said = 0
        self.before = 0  # Of these nobody knows how long they took.
        self.started: float | None = None
        self.console = PlainConsole(stderr=True, quiet=not enabled, soft_wrap=True)
        self.bar = None
        if enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=_BAR),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(what, total=total, text="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.update(self.task, text=_fitting(self.terms, self._room()))
            self.bar.stop()

    def skip(self, count: int) -> None:
        """Things that were done before; they say nothing about the speed."""
        self.done += count
        self.before += count
        if self.bar is not None:
            self.bar.reset(self.task, completed=self.done)

    def advance(self, count: int, *, quiet: bool = False) -> None:
        """Things are done; `quiet` if there is nothing worth a line."""
        self.done = min(self.done + count, self.total)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, text=_fitting(self.terms, self._room()))
            return
        now = time.monotonic()
        if self.started is None:  # The first one pays for what is done only once.
            self.started, self.before = now, self.done
        part = _LINES * self.done // max(self.total, 1)
        if part > self.said and not quiet:
            self.said = part
            words = [f"{self.what} {self.done}/{self.total}"]
            if self.done > self.before or self.done == self.total:  # Else nobody knows the speed yet.
                speed = (now - self.started) / max(self.done - self.before, 1)
                words.append(f"ETA {_clock(speed * (self.total - self.done))}")
            self.console.print(" ".join([*words, ", ".join(self.terms)]).rstrip())

    def note(self, message: str) -> None:
        """Something else takes time, or has to be said."""
        if self.bar is None:
            self.console.print(message)
        elif message.startswith("warning: "):
            self.bar.console.print(message)  # Stays above the bar.
        else:
            self.bar.update(self.task, text=_fitting([message], self._room()))

    def _room(self) -> int:
        """Columns that the bar, the count and the time leave."""
        fixed = len(self.what) + _BAR + 2 * len(str(self.total)) + 1 + len("ETA") + len("0:00:00") + 5
        return self.console.width - fixed


def _fitting(terms: Iterable[str], room: int) -> str:
    """The first terms that fit into so many columns; a single one is cut."""
    text = ""
    for term in terms:
        longer = f"{text}, {term}" if text else term
        if len(longer) > room:
            break
        text = longer
    first = next(iter(terms), "")
    return text or (f"{first[: room - 1]}…" if room > 1 and first else "")


def _clock(seconds: float) -> str:
    """75 -> 1:15"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

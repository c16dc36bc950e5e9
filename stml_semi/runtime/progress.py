"""What takes long says so on standard error: a bar with the time left, or plain lines where there is no terminal."""

import sys
import time
from typing import Self

_LINES = 20


class Counter:
    """Progress over a known number of things: a bar on a terminal, elsewhere about twenty lines."""

    def __init__(self, what: str, total: int, *, enabled: bool) -> None:
        """
        Args:
            what: one word.
            total: pictures, or steps.
            enabled: only the main process talks.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from stml_semi.runtime.terminal_text import PlainConsole

        self.what, self.total = what, total
        self.text = ""
        """What there is to say beside the count."""
        self.done = self.said = 0
        self.before = 0  # Of these nobody knows how long they took.
        self.started: float | None = None
        self.console = PlainConsole(stderr=True, quiet=not enabled, soft_wrap=True)
        self.bar = None
        if enabled and sys.stderr.isatty():
            said = TextColumn("{task.fields[text]}", markup=False)
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), said)
            self.bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task(what, total=total, text="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=self.what)
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
            self.bar.update(self.task, completed=self.done, description=self.what, text=self.text)
            return
        now = time.monotonic()
        if self.started is None:  # The first one pays for what is done only once.
            self.started, self.before = now, self.done
        part = _LINES * self.done // max(self.total, 1)
        if part > self.said and not quiet:
            self.said = part
            text = f" {self.text}" if self.text else ""
            if self.done > self.before or self.done == self.total:  # Else nobody knows the speed yet.
                speed = (now - self.started) / max(self.done - self.before, 1)
                text += f" left {speed * (self.total - self.done):.0f}s"
            self.console.print(f"{self.what} {self.done}/{self.total}{text}")

    def note(self, message: str) -> None:
        """Something else takes time, or has to be said."""
        if self.bar is None:
            self.console.print(message)
        elif message.startswith("warning: "):
            self.bar.console.print(message)  # Stays above the bar.
        else:
            self.bar.update(self.task, description=message)

"""SIGTERM and SIGINT (spot machines, time limits, Ctrl-C) let a run save before it leaves."""

import signal
from types import FrameType
from typing import Self

from stml_semi.runtime.errors import RunFailed


class Interrupted(RunFailed):
    """The run was asked to stop, and did so after saving."""

    everywhere = True

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; everything is saved: go on with --resume")
        self.exit_code = 128 + number


class StopSignal:
    """Within this context the first SIGTERM or SIGINT is remembered; a second one acts as usual."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, 0 for none."""

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._before:
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, self._before[signal.Signals(number)])

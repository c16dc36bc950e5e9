"""How a program ends early: bad input, a run that failed, a signal. Every other exception is a fault of ours and keeps
its traceback. Imports nothing heavy."""

import signal
import threading
from types import FrameType
from typing import Self


class BadInput(ValueError):
    """What the user gave cannot be used: the message names the flag (or the file) and the fix, in one line."""


class RunFailed(RuntimeError):
    """The run ended for a reason that the user can do something about; the message says what."""

    exit_code = 1
    everywhere = False
    """Whether all processes raise it: then only the main one prints it."""

    @classmethod
    def on_all(cls, message: str) -> Self:
        """The error, for a place that all processes come to together."""
        error = cls(message)
        error.everywhere = True
        return error


class Interrupted(RunFailed):
    """The run was asked to stop by a signal (spot machines, time limits, Ctrl-C), and did so after saving."""

    everywhere = True

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; everything is saved: continue with --resume")
        self.exit_code = 128 + number


class StopSignal:
    """Within this context the first SIGTERM or SIGINT is remembered; a second one acts as usual.

    Outside the main thread Python takes no signals, and nothing is remembered.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, 0 for none."""

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.getsignal(number) for number in numbers}
        for number in self._before:
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, self._before[signal.Signals(number)])


def one_line(error: BaseException, most: int = 300) -> str:
    """An exception's text without line breaks, cut to `most` characters; its type's name if it has no text."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]

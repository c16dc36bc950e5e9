"""Errors that end a program with one line. Every other exception is a fault of the program, and keeps its traceback."""

from typing import Self


class BadInput(ValueError):
    """What the user gave cannot be used: the message names the flag (or the file) and the fix, in one line."""


class RunFailed(RuntimeError):
    """The run ended for a reason that the user can do something about; the message says what."""

    exit_code = 1
    everywhere = False
    """Whether all processes raise it: then only the main one speaks."""

    @classmethod
    def on_all(cls, message: str) -> Self:
        """The error, for a place that all processes come to together."""
        error = cls(message)
        error.everywhere = True
        return error

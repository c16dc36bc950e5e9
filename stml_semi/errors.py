"""Errors that end a run with one line. Bad input is a plain ValueError."""

from typing import Self


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

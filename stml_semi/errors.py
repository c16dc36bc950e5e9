"""Errors that end a run with one line. Bad input is a plain ValueError."""


class RunFailed(RuntimeError):
    """The run ended for a reason that the user can do something about; the message says what."""

    exit_code = 1
    everywhere = False
    """Whether all processes raise it: then only the main one speaks."""

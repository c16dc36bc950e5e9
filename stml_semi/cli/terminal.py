"""How commands end: bad input in one line, results in a sentence or as JSON, and only once."""

import atexit
import contextlib
import errno
import io
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn

from stml_semi.runtime.errors import BadInput, RunFailed

DATA_ROOT = "Folder of the benchmarks. Default: $STML_DATA."
"""Help of --data-root."""


class one_line_errors:
    """Bad input ends with one clear line and exit code 2; what is not the user's doing keeps its traceback."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if isinstance(error, BadInput):
            stop(str(error), 2)
        if isinstance(error, RunFailed):
            stop(str(error), error.exit_code, everywhere=error.everywhere)
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            from stml_semi.runtime.failures import dead_worker

            if died := dead_worker(error):
                stop(str(died), died.exit_code)
        if isinstance(error, KeyboardInterrupt):
            stop("interrupted", 130)


@contextlib.contextmanager
def whole_output() -> Iterator[None]:
    """What is printed arrives, or one line says why not: a full disk under standard output shows as late as at exit."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is not None or not (full or error.errno == errno.EPIPE):
            raise
        # What has not been written yet would fail once more, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if full:
            stop("standard output: the disk is full: free some space, then run the same command again", 1)
        sys.exit(1)  # Nobody reads any more (head).


@contextlib.contextmanager
def leaves_at_once() -> Iterator[None]:
    """The process is gone when its command has ended.

    Threads of libraries that are still alive now and then abort a process on its way out. Its exit code is then wrong,
    and a launcher of several ends the others, of which the first may be writing its report.
    """
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        atexit._run_exitfuncs()  # Trackers send their last lines, temporary folders go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def stop(message: str, code: int, *, everywhere: bool = True) -> NoReturn:
    from stml_semi.runtime.terminal_text import visible

    if is_main():
        print(f"error: {visible(message)}", file=sys.stderr)
    elif not everywhere:
        print(f"error: process {os.environ['RANK']}: {visible(message)}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


def is_main() -> bool:
    """Whether this is the first process of `accelerate launch`, known before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def print_any_name() -> None:
    """File names that are not UTF-8 are printed with escapes, where printing them would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A notebook has others.
            stream.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Bars and advice of the libraries underneath are not about what the user asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # Importing it to say so takes two seconds.
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def among(name: str, value: str, *choices: str) -> None:
    """
    Raises:
        BadInput: the value of a flag is none of its choices.
    """
    if value not in choices:
        raise BadInput(f"{name} {value}: choose one of {', '.join(choices)}")


def print_outcome(sentence: str, values: dict[str, Any], as_json: bool) -> None:
    """Prints a result, on the main process."""
    from stml_semi.runtime.terminal_text import visible

    if is_main():
        print(json.dumps(values) if as_json else visible(sentence))

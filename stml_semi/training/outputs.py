"""Where a run writes and speaks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stml_semi.run_folder.folder import RunFolder
from stml_semi.training.trackers import Trackers


class Progress(Protocol):
    """What the loop tells the person who waits."""

    def step(self, step: int, line: dict[str, float] | None) -> None: ...
    def note(self, message: str) -> None: ...


class Callbacks(NamedTuple):
    """Functions of a program that trains; called on the main process. What they raise ends the run."""

    on_log: Callable[[dict[str, Any]], object] | None = None
    """Gets every line of training terms, as metrics.jsonl does."""
    on_evaluation: Callable[[dict[str, Any]], object] | None = None
    """Gets every line of scores."""
    on_checkpoint: Callable[[Path], object] | None = None
    """Gets the folder of a checkpoint that was written."""


class Outputs(NamedTuple):
    """The run folder, the trackers, the terminal, and who else wants to know."""

    folder: RunFolder
    trackers: Trackers
    progress: Progress
    callbacks: Callbacks = Callbacks()

    def log(self, line: dict[str, Any], **for_the_folder: Any) -> None:
        """Writes a line to metrics.jsonl and to the trackers; lists and the like to the folder alone."""
        self.folder.log.write(line | for_the_folder)
        self.trackers.log(line)
        call = self.callbacks.on_evaluation if "model" in line else self.callbacks.on_log if "loss" in line else None
        if call is not None and self.folder.writes:
            call(dict(line))

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint was written; called on the main process."""
        if self.callbacks.on_checkpoint is not None:
            self.callbacks.on_checkpoint(checkpoint)

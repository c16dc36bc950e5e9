"""Where a run writes and speaks."""

from typing import Any, NamedTuple, Protocol

from stml_semi.run_folder.folder import RunFolder
from stml_semi.training.trackers import Trackers


class Progress(Protocol):
    """What the loop tells the person who waits."""

    def step(self, step: int, line: dict[str, float] | None) -> None: ...
    def note(self, message: str) -> None: ...


class Outputs(NamedTuple):
    """The run folder, the trackers, and the terminal."""

    folder: RunFolder
    trackers: Trackers
    progress: Progress

    def log(self, line: dict[str, Any], **for_the_folder: Any) -> None:
        """Writes a line to metrics.jsonl and to the trackers; lists and the like to the folder alone."""
        self.folder.log.write(line | for_the_folder)
        self.trackers.log(line)

"""metrics.jsonl and bad_images.jsonl of a run: written line by line, rewound by a resume; and what their lines mean."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.runtime.files import append_json_lines, flush, read_json_lines, write_json_lines


class RunLog:
    """The two logs of a run. Only the main process writes; all know which images are listed."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.metrics, self.bad_images = folder / "metrics.jsonl", folder / "bad_images.jsonl"
        self._writes = writes
        self._listed: set[str] = set()

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        if self._writes:
            append_json_lines(self.metrics, [line])

    def lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds."""
        return read_json_lines(self.metrics)

    def bad_lines(self) -> list[dict[str, Any]]:
        """What bad_images.jsonl holds."""
        return read_json_lines(self.bad_images)

    def rewind(self, step: int, *, but: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Forgets lines of steps after `step`, and those that are named: a resumed run writes them again."""
        listed = self.bad_lines()
        self._listed = {line["image"] for line in listed}
        if self._writes:
            write_json_lines(
                self.metrics, [line for line in self.lines() if line["step"] <= step and not (but and but(line))]
            )
            write_json_lines(self.bad_images, listed)

    def flush(self) -> None:
        """Brings the logs to the disk: a checkpoint must not outlive the lines that it promises."""
        if self._writes:
            flush(self.metrics)
            flush(self.bad_images)

    @property
    def num_bad(self) -> int:
        """How many images are listed as bad."""
        return len(self._listed)

    def list_bad(self, found: Iterable[BadImageEntry]) -> int:
        """Lists images in bad_images.jsonl, each once. Returns how many are listed."""
        new = {bad.image: bad for bad in found if bad.image not in self._listed}
        self._listed |= new.keys()
        if new and self._writes:
            append_json_lines(self.bad_images, [bad._asdict() for bad in new.values()])
        return len(self._listed)


# ------------------------------------------------------------------ lines of metrics.jsonl


def is_validation(line: dict[str, Any]) -> bool:
    """Whether a line is an evaluation that chooses the exported step."""
    return line.get("split") == "validation"


def is_final_test(line: dict[str, Any]) -> bool:
    """Whether a line, of a run with validation classes, is the one test of the student that they chose."""
    return line.get("model") == "student" and not is_validation(line)


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that score a model on a table."""
    return [line for line in lines if "model" in line]


def score_keys(line: dict[str, Any]) -> list[str]:
    """The scores that an evaluation line holds, in the order in which they are shown."""
    return [*(key for key in line if key.startswith("recall@")), "r_precision", "map@r"]


def exported_step(lines: Sequence[dict[str, Any]]) -> int | None:
    """The step whose student is exported, as far as metrics.jsonl goes: the best one, or the last without validation.

    None if nothing is logged yet.
    """
    scores = {line["step"]: line["map@r"] for line in lines if is_validation(line) and line["model"] == "student"}
    if scores:
        return max(scores, key=lambda step: (scores[step], -step))
    return max((line["step"] for line in lines), default=None)

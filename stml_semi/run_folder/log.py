"""metrics.jsonl and bad_images.jsonl of a run: written line by line, rewound by a resume; and what their lines mean."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.runtime import distributed
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
        """Forgets lines of steps after `step`, and those that are named: a resumed run writes them again.

        All processes call this together.
        """
        listed = distributed.from_main(self.bad_lines)
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
    """Whether a line, of a run with validation classes, is the one test of the model that they chose."""
    return line.get("model") not in (None, "frozen") and not is_validation(line)


def is_of_the_end(line: dict[str, Any]) -> bool:
    """Whether a line is of those that a run with validation classes writes when all steps are done."""
    return is_candidate(line) or is_final_test(line)


def is_candidate(line: dict[str, Any]) -> bool:
    """Whether a line scores, at the end of a run with validation classes, a model that could be exported.

    Its alpha is the share of the student's weights: 1 of the student, 0 of the frozen backbone, None of the teacher.
    """
    return "candidate" in line


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that score a model on a table."""
    return [line for line in lines if "model" in line]


def candidate_rows(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates' lines in the order in which they are shown: from frozen to trained, then the teacher."""
    found = [line for line in lines if is_candidate(line)]
    return sorted(found, key=lambda line: (line["alpha"] is None, line["alpha"]))


def candidate_name(line: dict[str, Any]) -> str:
    """What tables call a candidate; a star marks the one that is exported."""
    return weights_name(line["candidate"], line["alpha"]) + " *" * line["exported"]


def result_name(line: dict[str, Any]) -> str:
    """What tables of results call the model of an evaluation."""
    known = {"frozen": "frozen backbone", "student": "trained"}
    return known.get(line["model"], f"trained ({line['model']})")


def score_keys(line: dict[str, Any]) -> list[str]:
    """The scores that an evaluation line holds, in the order in which they are shown."""
    return [*(key for key in line if key.startswith("recall@")), "r_precision", "map@r"]


Served = Literal["student", "teacher", "interpolated", "frozen"]
"""What can be exported: interpolated weights lie between those of the student and those before training, frozen is the
backbone before training, without a head."""


class Choice(NamedTuple):
    """The model that a run exports."""

    model: Served
    step: int
    """Steps that its weights have taken; 0 of the frozen backbone."""
    alpha: float | None = None
    """Share of the student's weights in interpolated ones."""

    @property
    def name(self) -> str:
        """In a sentence, after "the"."""
        name = weights_name(self.model, self.alpha)
        return f"interpolated model ({name})" if self.model == "interpolated" else name


def weights_name(model: Served, alpha: float | None) -> str:
    """What tables call the weights of a candidate."""
    if model == "interpolated":
        assert alpha is not None
        return f"{alpha:.0%} student + {1 - alpha:.0%} frozen"
    return "frozen backbone" if model == "frozen" else model


def exported(lines: Sequence[dict[str, Any]]) -> Choice | None:
    """The model that is exported, as far as metrics.jsonl goes.

    That which the candidates' lines say; before the end the student that is best on the validation classes so far;
    without validation the last student. None if nothing is logged yet.
    """
    if chosen := next(filter(_is_chosen, lines), None):
        return choice_of(chosen)
    scores = {line["step"]: line["map@r"] for line in lines if is_validation(line) and line["model"] == "student"}
    if scores:
        return Choice("student", max(scores, key=lambda step: (scores[step], -step)))
    last = max((line["step"] for line in lines), default=None)
    return None if last is None else Choice("student", last)


def decided(lines: Sequence[dict[str, Any]], step: int) -> Choice | None:
    """What validation chose at the end of a run, if the end was after `step` steps: else a choice is still to come."""
    chosen = next((line for line in lines if _is_chosen(line) and line["step"] == step), None)
    return None if chosen is None else choice_of(chosen)


def _is_chosen(line: dict[str, Any]) -> bool:
    return is_candidate(line) and line["exported"]


def choice_of(line: dict[str, Any]) -> Choice:
    """The model that a candidate's line speaks of."""
    model = line["candidate"]
    return Choice(model, line["weights_step"], line["alpha"] if model == "interpolated" else None)


def exported_step(lines: Sequence[dict[str, Any]]) -> int | None:
    """Steps that the exported weights have taken; see `exported`."""
    choice = exported(lines)
    return None if choice is None else choice.step

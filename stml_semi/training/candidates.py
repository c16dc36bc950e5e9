"""The end of a run with validation classes: which of its models is exported, and what other runs could not check."""

from collections.abc import Sequence
from typing import NamedTuple

from stml_semi.config import TrainConfig
from stml_semi.metrics import Interval, bootstrap
from stml_semi.models.embedder import Embedder
from stml_semi.models.evaluation import Scored
from stml_semi.models.interpolation import serve_features
from stml_semi.models.teacher import Teacher
from stml_semi.run_folder.log import Choice
from stml_semi.sharing.thresholds import as_lists
from stml_semi.training.best_student import BestStudent
from stml_semi.training.evaluator import Evaluator

ALPHAS = (0.25, 0.5, 0.75)
"""Shares of the student's weights in the interpolated candidates."""


class Candidate(NamedTuple):
    """A model that could be exported."""

    choice: Choice
    scored: Scored
    gain: Interval
    """Its MAP@R minus the student's, with a 95% interval over classes."""


class Candidates:
    """The best student, weights between it and the start, the frozen backbone, and the teacher of the end."""

    def __init__(self, best: BestStudent, teacher: Teacher, embedder: Embedder, last_step: int) -> None:
        """
        Args:
            best: the student that is exported unless another model is better.
            teacher: of the last step.
            embedder: takes the weights of one candidate after the other.
            last_step: of the run.
        """
        self.best, self.teacher, self.embedder, self.last_step = best, teacher, embedder, last_step

    def choose(self, evaluator: Evaluator) -> Candidate:
        """Scores all on the validation classes, logs the scores, and leaves the embedder as the model to export.

        All processes call this together, and choose the same.
        """
        step = int(self.best.step)
        choices = [
            Choice("student", step),
            *(Choice("interpolated", step, alpha) for alpha in ALPHAS),
            Choice("frozen", 0),
            Choice("teacher", self.last_step),
        ]
        found = compare([(choice, self._score(choice, evaluator)) for choice in choices])
        chosen = best_of(found)
        for one in found:
            # Not for trackers: they would put the scores of six models on the curve of one.
            evaluator.outputs.folder.log.write(
                {
                    "step": self.last_step,
                    "data": evaluator.validation_name,
                    "split": "validation",
                    "candidate": one.choice.model,
                    "alpha": {"student": 1.0, "frozen": 0.0}.get(one.choice.model, one.choice.alpha),
                    "weights_step": one.choice.step,
                    **one.scored.means,
                    "gain": list(one.gain),
                    "exported": one is chosen,
                    **({"thresholds": as_lists(one.scored.thresholds)} if one is chosen else {}),
                }
            )
        self._load(chosen.choice)
        if chosen.choice.model == "frozen":
            serve_features(self.embedder)
        evaluator.outputs.progress.note(describe(chosen, found[0]))
        return chosen

    def _score(self, choice: Choice, evaluator: Evaluator) -> Scored:
        self._load(choice)
        features = choice.model == "frozen"
        return evaluator.score_candidate(choice.name, self.embedder, features=features)

    def _load(self, choice: Choice) -> None:
        if choice.model == "teacher":
            state = self.teacher.model.state_dict()
        elif choice.model == "student":
            state = self.best.model.state_dict()
        else:
            state = self.best.interpolated(choice.alpha or 0.0)
        self.embedder.load_state_dict(state)


def compare(scored: Sequence[tuple[Choice, Scored]]) -> list[Candidate]:
    """Compares candidates with the first of them, query by query."""
    queries = scored[0][1].queries
    asked = queries.scores.num_relevant > 0
    labels, student = queries.labels[asked], queries.scores.average_precision[asked]
    found = []
    for choice, one in scored:
        more = one.queries.scores.average_precision[asked] - student
        found.append(Candidate(choice, one, bootstrap(more[:, None], groups=labels)[0]))
    return found


def best_of(found: Sequence[Candidate]) -> Candidate:
    """The first candidate, unless another is better by more than chance: then the best of all.

    Weights near to the student's differ from it little but surely, others much but less surely: once it is known that
    the student can be beaten, the largest score is the best guess.

    Better by more than chance means that the 95% interval of the difference in MAP@R, from a bootstrap over the
    validation classes, is above 0. A fixed margin would be too small for five classes and too large for five hundred.
    """
    beaten = any(one.gain.low > 0 for one in found)
    return max(found, key=lambda one: one.gain.mean) if beaten else found[0]


def describe(chosen: Candidate, student: Candidate) -> str:
    """The choice in one sentence."""
    step = student.choice.step
    if chosen is student:
        return (
            f"the student of step {step} did best of all evaluated steps on the validation classes and is exported; "
            f"the teacher, the frozen backbone and weights in between were not better by more than chance"
        )
    own, other = (100 * one.scored.means["map@r"] for one in (chosen, student))
    low, high = 100 * chosen.gain.low, 100 * chosen.gain.high
    return (
        f"the {chosen.choice.name} did better on the validation classes than the student of step {step} and is "
        f"exported: MAP@R {own:.1f} vs. {other:.1f}, 95% interval of the difference {low:+.1f} to {high:+.1f}"
    )


def not_checked(config: TrainConfig) -> str:
    """What a run without validation classes does not know, in one sentence."""
    others = "whether the frozen backbone, the teacher or weights in between serve better than the exported student"
    if config.labeled:
        return f"not checked: {others}; --validation-classes 0.2 compares them on a fifth of the labeled classes"
    return f"not checked, because no labeled classes are kept to compare them on: {others}"

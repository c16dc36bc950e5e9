"""What a run was worth: the exported model against the frozen backbone, in the words of terminal, report and card."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from stml_semi.data.claims import TRAINED
from stml_semi.metrics import score_title
from stml_semi.run_folder.log import exported, is_validation

OVER_FROZEN = "over_frozen"
"""Key of an evaluation line: metric -> [difference to the frozen backbone, low, high], a 95% interval over classes."""
METRICS = ("recall@1", "map@r")

_Level = Literal["better", "unclear", "worse"]


class Verdict(NamedTuple):
    """A sentence, and whether it is good news."""

    text: str
    level: _Level


def verdict(lines: Sequence[dict[str, Any]], claim: str) -> Verdict | None:
    """Compares the exported model with the frozen backbone on the images that the run was tested on.

    None where that was not measured: no evaluation, or an older run.

    Args:
        lines: of metrics.jsonl.
        claim: of the run, about the classes that it was tested on.
    """
    choice = exported(lines)
    found = [
        line[OVER_FROZEN]
        for line in lines
        if OVER_FROZEN in line
        and not is_validation(line)
        and choice is not None
        and (line["model"], line["step"]) == (choice.model, choice.step)
    ]
    if choice is not None and choice.model == "frozen":
        return Verdict("The frozen backbone itself: no training was better on the validation classes.", "unclear")
    if not found:
        return None
    text, level = difference(found[-1], "the frozen backbone")
    if TRAINED in claim:
        text = f"On classes that were trained on, which says nothing of new ones: {text[:1].lower()}{text[1:]}"
    if level == "worse":
        text = f"{text[:-1]}: {_advice(lines)}."
    return Verdict(text, level)


def difference(gain: Mapping[str, Sequence[float]], other: str) -> Verdict:
    """Compares a model with another in words.

    Args:
        gain: metric -> [mean difference, low, high], shares; those of `METRICS` are told.
        other: what the other model is called.
    """
    parts: dict[_Level, list[str]] = {"better": [], "worse": [], "unclear": []}
    for metric in filter(gain.__contains__, METRICS):
        mean, low, high = gain[metric]
        kind: _Level = "better" if low > 0 else "worse" if high < 0 else "unclear"
        parts[kind].append(_unclear(metric, mean, low, high) if kind == "unclear" else _clear(metric, mean, low, high))
    said = [f"{kind} than {other} by {' and '.join(parts[kind])}" for kind in ("better", "worse") if parts[kind]]
    if parts["unclear"]:
        said.append(f"no clear difference{'' if said else f' from {other}'} in {' and '.join(parts['unclear'])}")
    text = "; ".join(said)
    level = "worse" if parts["worse"] else "better" if parts["better"] else "unclear"
    return Verdict(f"{text[:1].upper()}{text[1:]}.", level)


def _clear(metric: str, mean: float, low: float, high: float) -> str:
    """3.8 points of recall@1 (3.1 to 4.7)"""
    near, far = sorted((abs(low), abs(high)))
    return f"{100 * abs(mean):.1f} points of {score_title(metric)} ({100 * near:.1f} to {100 * far:.1f})"


def _unclear(metric: str, mean: float, low: float, high: float) -> str:
    """recall@1 (+0.3 points, -0.5 to +1.1)"""
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (mean, low, high))  # No -0.0.
    return f"{score_title(metric)} ({mean:+.1f} points, {low:+.1f} to {high:+.1f})"


def _advice(lines: Sequence[dict[str, Any]]) -> str:
    """What fits a run that made the model worse."""
    if any(map(is_validation, lines)):
        return "try a lower --learning-rate, or keep more --validation-classes, which saw no harm"
    if any(line.get("labeled_loss") for line in lines):
        return (
            "try a lower --learning-rate, or --validation-classes 0.2, which exports the frozen backbone or weights in "
            "between where these are better"
        )
    return "try a lower --learning-rate or fewer --max-steps"

"""What a run was worth: the exported model against the frozen backbone, in the words of terminal, report and card."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from stml_semi.data.claims import TRAINED
from stml_semi.metrics import score_title
from stml_semi.run_folder.log import exported, is_validation

OVER_FROZEN = "over_frozen"
"""Key of an evaluation line: metric -> [difference to the frozen backbone, low, high], a 95% interval over classes."""
METRICS = ("recall@1", "map@r")
_ADVICE = (
    "try a lower --learning-rate, or --validation-classes 0.2, which exports the frozen backbone or weights in between "
    "where these are better"
)


class Verdict(NamedTuple):
    """A sentence, and whether it is good news."""

    text: str
    level: Literal["better", "unclear", "worse"]


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
    parts: dict[str, list[str]] = {"better": [], "unclear": [], "worse": []}
    for metric in METRICS:
        mean, low, high = found[-1][metric]
        kind = "better" if low > 0 else "worse" if high < 0 else "unclear"
        parts[kind].append(_part(metric, mean, low, high, signed=kind == "unclear"))
    words = {
        "better": "Better than the frozen backbone by {}",
        "worse": "Worse than the frozen backbone by {}",
        "unclear": "No clear difference from the frozen backbone: {}",
    }
    said = [words[kind].format(" and ".join(found)) for kind, found in parts.items() if found]
    text = "; ".join([said[0], *(part[:1].lower() + part[1:] for part in said[1:])])
    if TRAINED in claim:
        text = f"On classes that were trained on, which says nothing of new ones: {text[:1].lower()}{text[1:]}"
    level = "worse" if parts["worse"] else "better" if parts["better"] else "unclear"
    return Verdict(f"{text}: {_ADVICE}." if parts["worse"] else f"{text}.", level)


def _part(metric: str, mean: float, low: float, high: float, *, signed: bool) -> str:
    """3.8 points of recall@1 (3.1 to 4.7)"""
    if signed:
        return f"{100 * mean:+.1f} points of {score_title(metric)} ({100 * low:+.1f} to {100 * high:+.1f})"
    ends = sorted((abs(low), abs(high)))
    return f"{100 * abs(mean):.1f} points of {score_title(metric)} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"

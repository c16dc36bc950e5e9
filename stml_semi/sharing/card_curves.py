"""The training curves on a model card: one small image that every viewer of Markdown can show."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stml_semi.run_folder.log import is_validation

FILE = "training_curves.png"
_MOST_POINTS = 300
_COLORS = {"student": "#1f77b4", "teacher": "#d95f02", "frozen": "#666666"}
_LOSSES = {"labeled_loss": "Labeled loss", "relaxed_contrastive": "Relaxed contrastive loss"}


def draw_curves(lines: Sequence[dict[str, Any]]) -> bytes | None:
    """MAP@R of student and teacher beside the frozen backbone, and the losses, over the steps.

    Args:
        lines: of metrics.jsonl, as far as the exported weights have seen them.

    Returns:
        A PNG on white, about 70 kB; None if there is nothing to draw.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scores = [line for line in lines if "model" in line]
    # Where classes are kept for validation, those have a curve: what is tested on was looked at twice.
    scores = [line for line in scores if is_validation(line)] or scores
    losses = {title: begun(lines, key) for key, title in _LOSSES.items()}
    # A single point is no curve, and a term that is always zero was not trained.
    losses = {title: found for title, found in losses.items() if len(found) > 1}
    panels = bool(scores) + len(losses)
    if not panels:
        return None
    style: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
    }
    with rc_context({**style, "grid.color": "#dddddd", "axes.axisbelow": True}):
        figure = Figure(figsize=(3.2 * panels, 2.4), dpi=150, layout="constrained", facecolor="white")
        axes = list(figure.subplots(1, panels, squeeze=False)[0])
        for one in axes:
            one.set_xlabel("step")
            one.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if scores:
            _draw_scores(axes.pop(0), scores)
        for one, (title, found) in zip(axes, losses.items(), strict=True):
            one.set_title(title)
            one.plot(*thin(found), color=_COLORS["student"], linewidth=1.3)
        file = io.BytesIO()
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _draw_scores(axes: Any, scores: Sequence[dict[str, Any]]) -> None:
    axes.set_title("MAP@R on validation classes, %" if is_validation(scores[0]) else "MAP@R, %")
    frozen = [line for line in scores if line["model"] == "frozen"]
    for line in frozen[-1:]:
        axes.axhline(100 * line["map@r"], color=_COLORS["frozen"], linestyle=":", label="frozen backbone")
    for model in ("student", "teacher"):
        found = _points([line for line in [*frozen[-1:], *scores] if line["model"] in ("frozen", model)], "map@r")
        if any(line["model"] == model for line in scores):
            steps, values = zip(*dict(found).items(), strict=True)
            percent = [100 * value for value in values]
            axes.plot(steps, percent, "o-", color=_COLORS[model], markersize=3, linewidth=1.3, label=model)
    axes.legend(fontsize=7, framealpha=0.8)


def thin(found: list[tuple[float, float]]) -> NDArray[np.float64]:
    """(2, <= 300): steps and values; of long runs the means of equal parts."""
    parts = np.array_split(np.array(found, dtype=np.float64), min(len(found), _MOST_POINTS))
    return np.array([part.mean(0) for part in parts]).T


def begun(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Steps and values of a term. What is zero at first does not exist yet: the unlabeled ones follow the warm-up."""
    return list(itertools.dropwhile(lambda point: not point[1], _points(lines, key)))


def _points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]

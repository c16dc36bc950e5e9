"""The figures of the study: bars of all arms, and curves over what there is to learn from."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GREEN, GRAY, RED, BLUE, INK = "#1a7f37", "#8c959f", "#b42318", "#0969da", "#1f2328"
HIGHLIGHTED = "semi, 2,000 steps"


class Points(NamedTuple):
    """What an arm's seeds gave, in percent."""

    frozen: dict[str, float]
    """Metric -> the backbone's."""
    student: dict[str, list[float]]
    """Metric -> the student's, seed after seed."""


def draw_bars(arms: Mapping[str, Points], path: Path) -> None:
    """Bars of every metric with a dot for each seed."""
    pyplot = _pyplot()
    metrics = list(next(iter(arms.values())).student)
    figure, axes = pyplot.subplots(
        1, len(metrics), figsize=(11, 0.42 * len(arms) + 1.4), sharey=True, layout="constrained"
    )
    places = np.arange(len(arms))[::-1]
    for axis, metric in zip(axes, metrics, strict=True):
        values = [points.student[metric] for points in arms.values()]
        means = [statistics.mean(v) for v in values]
        colors = [GREEN if arm == HIGHLIGHTED else GRAY for arm in arms]
        axis.barh(places, means, color=colors, height=0.7)
        for place, dots, mean in zip(places, values, means, strict=True):
            axis.plot(dots, [place] * len(dots), ".", color=INK, markersize=4)
            axis.annotate(
                f"{mean:.1f}", (max(dots), place), (5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axis.axvline(next(iter(arms.values())).frozen[metric], color=RED, linewidth=1, linestyle="--")
        axis.set_xlim(0, 1.12 * max(max(v) for v in values))
        axis.set_title(f"{metric}, percent (dashed: frozen, all test images)", fontsize=10)
        axis.set_yticks(places, list(arms))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_budgets(
    arms: Mapping[str, Points], budgets: Mapping[str, Mapping[str, Mapping[int, str]]], path: Path
) -> None:
    """A row of curves for every budget, with a dot for each seed.

    Args:
        arms: by name.
        budgets: what is counted -> command -> count -> name of the arm.
        path: of the image.
    """
    pyplot = _pyplot()
    metrics = list(next(iter(arms.values())).student)
    size = (4 * len(metrics), 3 * len(budgets))
    figure, axes = pyplot.subplots(len(budgets), len(metrics), figsize=size, squeeze=False, layout="constrained")
    for row, (counted, curves) in zip(axes, budgets.items(), strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            for command, names in curves.items():
                values = {count: arms[name].student[metric] for count, name in names.items() if name in arms}
                color = {"semi": GREEN, "sup": GRAY}.get(command, BLUE)
                axis.plot(list(values), [statistics.mean(v) for v in values.values()], color=color, label=command)
                for count, dots in values.items():
                    axis.plot([count] * len(dots), dots, ".", color=color, markersize=5)
            if "sup" not in curves and "sup" in arms:
                mean = statistics.mean(arms["sup"].student[metric])
                axis.axhline(mean, color=GRAY, linewidth=1.5, label="sup, without any")
            frozen = next(iter(arms.values())).frozen[metric]
            axis.axhline(frozen, color=RED, linewidth=1, linestyle="--", label="frozen backbone")
            counts = sorted(set().union(*curves.values()))
            axis.set_xscale("log")
            axis.set_xticks(counts, [f"{count:,}" for count in counts])
            axis.minorticks_off()
            axis.set_xlabel(counted)
            axis.set_title(f"{metric}, percent", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot

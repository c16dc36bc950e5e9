"""How the affinities of pairs are distributed, over the steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stml_semi.report.charts import Chart, letter, page_svg, settings

_MOST_COLUMNS = 100


def affinity_charts(runs: Sequence[Sequence[dict[str, Any]]]) -> list[Chart]:
    """A chart for every run that logged histograms.

    Args:
        runs: lines of metrics.jsonl, run by run.
    """
    charts = []
    for place, lines in enumerate(runs):
        found = [line for line in lines if line.get("affinity_histogram")]
        if found:
            title = "Distribution of affinities" + (f", run {letter(place)}" if len(runs) > 1 else "")
            charts.append(_draw(title, found))
    return charts


def _draw(title: str, lines: Sequence[dict[str, Any]]) -> Chart:
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    steps, shares = _shares(lines)
    bins = shares.shape[1]
    with rc_context({**settings(title), "axes.grid": False}):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        # Each column reaches from the line before to its own; the first is as wide as the second.
        edges = np.concatenate([[2 * steps[0] - steps[1] if len(steps) > 1 else steps[0] - 1], steps])
        shown = axes.pcolormesh(
            edges,
            np.linspace(0, 1, bins + 1),
            np.ma.masked_equal(shares.T, 0),
            norm=LogNorm(1e-4, 1),
            cmap="cividis",
            rasterized=True,
        )
        axes.set_xlabel("step")
        axes.set_ylabel("affinity")
        bar = figure.colorbar(shown, label="share of pairs")
        assert bar.solids is not None
        bar.solids.set_rasterized(True)
        svg = page_svg(figure)
    high = shares[:, bins // 2 :].sum(1)
    ends = f"{high[0]:.1%} at step {steps[0]:.0f}, {high[-1]:.1%} at step {steps[-1]:.0f}"
    return Chart(title, svg, f"{title}: pairs with an affinity of at least 0.5 are {ends}.")


def _shares(lines: Sequence[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps (S,) and shares of pairs (S, bins), S at most 100: parts of long runs are summed, and end at their last."""
    counts = np.array([line["affinity_histogram"] for line in lines], dtype=np.float64)
    steps = np.array([line["step"] for line in lines], dtype=np.float64)
    parts = np.array_split(np.arange(len(lines)), min(len(lines), _MOST_COLUMNS))
    summed = np.array([counts[part].sum(0) for part in parts])
    return np.array([steps[part[-1]] for part in parts]), summed / summed.sum(1, keepdims=True)

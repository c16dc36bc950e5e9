"""Curves and maps as SVG that takes its colors from the page.

Importing this module is cheap: every run imports it, and matplotlib is imported by the functions that draw.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stml_semi.report.retrieval.projection import Projected
from stml_semi.run_folder.log import candidate_rows, evaluations
from stml_semi.sharing.card_curves import begun, thin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins that become colors of the page, which differ between light and dark.
_INK, _GRID, _SOFT = "#010203", "#010204", "#010205"
_SERIES = tuple(f"#0102{number:02x}" for number in range(16, 26))
_COLORS = {_INK: "currentColor", _GRID: "var(--line)", _SOFT: "var(--soft)"} | {
    c: f"var(--series-{i})" for i, c in enumerate(_SERIES)
}
_DASHES = ("-", "--", ":", "-.")
_BORDERS = ("solid", "dashed", "dotted", "double")
"""The same in the legend of the page."""
_SETTINGS: Any = {
    **{"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "path.simplify_threshold": 0.5},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": _GRID},
    **{"legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "axes.formatter.useoffset": False},
}


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    color: int
    dash: int
    run: str = ""
    """Letter of its run, if there are several."""

    @property
    def called(self) -> str:
        """Its name where the run has to be told."""
        return f"{self.run} {self.name}" if self.run else self.name


class Chart(NamedTuple):
    """An image of numbers, and the numbers in words."""

    title: str
    svg: str
    text: str
    curves: Sequence[Curve] = ()


class Key(NamedTuple):
    """An entry of the legend of all charts."""

    name: str
    color: str
    """A color of the page."""
    line: str
    """Style of a border."""


class Plan(NamedTuple):
    """What belongs into one chart."""

    title: str
    keys: dict[str, str]
    """Key of metrics.jsonl -> name of its curve."""
    color: int = 0
    """Of the first curve: names in the legend of all charts have a color each."""


PLANS = (
    Plan("Labeled loss", {"labeled_loss": "labeled loss"}),
    Plan("Relaxed contrastive loss", {"relaxed_contrastive": "relaxed contrastive"}),
    Plan("Self-distillation loss", {"self_distillation": "self-distillation"}),
    Plan("Gradient of the unlabeled term, relative to the labeled one's", {"grad_ratio": "ratio of gradient norms"}),
    Plan("Weight of the unlabeled term", {"unlabeled_weight": "weight"}),
    Plan("Trust: share of the pull between unlabeled images that is right", {"trust": "trust"}),
    Plan("Learning rate", {"lr": "learning rate"}),
    Plan(
        "Affinity of pairs",
        {"affinity_p50": "median", "affinity_p90": "90% quantile", "affinity_p99": "99% quantile"},
        color=2,
    ),
    Plan("Effective rank of the embeddings", {"effective_rank": "effective rank"}),
    Plan("Images per second", {"images_per_second": "images/s"}),
)


def training_charts(runs: Sequence[Sequence[dict[str, Any]]]) -> list[Chart]:
    """A chart for every plan that a run has numbers for.

    Args:
        runs: lines of metrics.jsonl, run by run. Several runs are told apart by letters, A, B, ...
    """
    charts = []
    for plan in PLANS:
        curves = []
        for place, lines in enumerate(runs):
            for number, (key, name) in enumerate(plan.keys.items()):
                if found := begun(lines, key):
                    steps, values = thin(found)
                    curves.append(_curve(name, steps, values, number + plan.color, number, place, len(runs)))
        if curves:
            charts.append(draw(plan.title, curves))
    return charts


def score_charts(runs: Sequence[Sequence[dict[str, Any]]]) -> list[Chart]:
    """Recall@1 and MAP@R over the steps, by evaluation images; a run starts from its frozen backbone."""
    runs = [evaluations(lines) for lines in runs]
    names = list(dict.fromkeys(line["data"] for lines in runs for line in lines))
    charts = []
    for name in names:
        where = f" on {name}" if len(names) > 1 else ""
        evaluated = [[line for line in lines if line["data"] == name] for lines in runs]
        for title, key in (("Recall@1", "recall@1"), ("MAP@R", "map@r")):
            if curves := _score_curves(evaluated, key):
                charts.append(draw(f"{title}{where}, %", curves, marker="o"))
    return charts


def candidate_charts(runs: Sequence[Sequence[dict[str, Any]]]) -> list[Chart]:
    """MAP@R on the validation classes of weights between the frozen backbone and the student."""
    curves = []
    for place, lines in enumerate(runs):
        mixed = [line for line in candidate_rows(lines) if line["alpha"] is not None]
        if mixed:
            shares = [100 * line["alpha"] for line in mixed]
            values = [100 * line["map@r"] for line in mixed]
            curves.append(_curve("MAP@R", shares, values, 0, 0, place, len(runs)))
    title = "MAP@R on validation classes between frozen (0) and student (100), %"
    return [draw(title, curves, marker="o", axis="share of the student's weights, %")] if curves else []


def _score_curves(runs: Sequence[Sequence[dict[str, Any]]], key: str) -> list[Curve]:
    curves = []
    for place, lines in enumerate(runs):
        for number, model in enumerate(("student", "teacher")):
            chosen = [line for line in lines if line["model"] in ("frozen", model) and key in line]
            if any(line["model"] == model for line in chosen):
                steps, values = [line["step"] for line in chosen], [100 * line[key] for line in chosen]
                curves.append(_curve(model, steps, values, number, number, place, len(runs)))
    return curves


def _curve(
    name: str, steps: Sequence[float], values: Sequence[float], color: int, dash: int, place: int, num_runs: int
) -> Curve:
    """Of several runs each has a color, else each curve of a chart."""
    if num_runs > 1:
        return Curve(name, steps, values, place, dash, letter(place))
    return Curve(name, steps, values, color, dash)


def chart_keys(charts: Sequence[Chart], letters: Sequence[str]) -> list[Key]:
    """One legend for all charts: which run a color is, and what lines are, where a chart has several.

    Args:
        charts: of all runs.
        letters: of the runs; one that is empty if there is one run.
    """
    several = [curve for chart in charts if len({c.name for c in chart.curves}) > 1 for curve in chart.curves]
    if len(letters) == 1:
        named = {c.name: Key(c.name, _page_color(c.color), _BORDERS[c.dash % len(_BORDERS)]) for c in several}
        return list(named.values())
    keys = [Key(f"run {name}", _page_color(place), _BORDERS[0]) for place, name in enumerate(letters)]
    for dash in sorted({curve.dash for curve in several}):
        names = dict.fromkeys(curve.name for curve in several if curve.dash == dash)
        keys.append(Key(", ".join(names), "var(--ink)", _BORDERS[dash % len(_BORDERS)]))
    return keys


def _page_color(number: int) -> str:
    return f"var(--series-{number % len(_SERIES)})"


def letter(place: int) -> str:
    """What a run is called where there is no room for its name: A, B, ..., Z, A2, ..."""
    round_number, place = divmod(place, 26)
    return chr(ord("A") + place) + (str(round_number + 1) if round_number else "")


def draw(title: str, curves: Sequence[Curve], *, marker: str | None = None, axis: str = "step") -> Chart:
    """One chart. axis: what `Curve.steps` are."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(settings(title)):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            color = _SERIES[curve.color % len(_SERIES)]
            line = _DASHES[curve.dash % len(_DASHES)]
            axes.plot(curve.steps, curve.values, line, color=color, marker=marker, markersize=4)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        svg = page_svg(figure)
    words = [
        f"{curve.called} from "
        + " to ".join(f"{curve.values[end]:.3g} at {axis} {curve.steps[end]:.0f}" for end in (0, -1))
        for curve in curves
    ]
    return Chart(title, svg, f"{title}: {'; '.join(words)}.", curves)


OTHERS = -1
"""Color of what has none of its own."""


def draw_map(name: str, projected: Projected, right: NDArray[np.bool_], colors: NDArray[np.int64]) -> str:
    """Points of a map as SVG, in two groups `<name>-right` and `<name>-wrong`, each in the order of the points.

    Args:
        name: unique on the page.
        projected: P points.
        right: (P,) whether a point's nearest neighbor is of its class.
        colors: (P,) numbers of series, or OTHERS.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**settings(name), "axes.grid": False}):
        figure = Figure(figsize=(4.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for mask, kind, marker in ((right, "right", "o"), (~right, "wrong", "X")):
            shades = [_SOFT if color == OTHERS else _SERIES[color] for color in colors[mask]]
            points = axes.scatter(*projected.plane[mask].T, s=34, marker=marker, color=shades, edgecolor="none")
            points.set_gid(f"{name}-{kind}")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(projected.axes[0])
        axes.set_ylabel(projected.axes[1])
        return page_svg(figure)


def settings(name: str) -> Any:
    """How charts look; names of parts of an image are made from its own."""
    return {**_SETTINGS, "svg.hashsalt": name}


def page_svg(figure: "Figure") -> str:
    """The figure for use inside HTML: no prolog, no metadata, no fixed size, colors of the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    for stand_in, color in _COLORS.items():
        body = body.replace(stand_in, color)
    # Names of groups repeat from figure to figure, as do styles for the whole page; those of the points are ours.
    body = re.sub(r'<g id="(?![^"]*-(?:right|wrong)")[^"]*"', "<g", body)
    body = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", body)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'="[^"]*"', lambda value: re.sub(r"(\.\d\d)\d+", r"\1", value[0]), body)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg {box[0]} aria-hidden="true" focusable="false">{body}'

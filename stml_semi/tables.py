"""Result tables in the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from stml_semi.run import Result

_COLUMNS = {"r_precision": "R-precision", "map@r": "MAP@R"}
_SHOWN = {"frozen": "frozen backbone", "student": "trained", "teacher": "trained (teacher)"}


def print_result(result: Result) -> None:
    """Frozen beside trained, from the first and last evaluation of a run."""
    console = Console(soft_wrap=True)
    folder = result.folder.path
    if result.lines:
        last = {line["model"]: line for line in result.lines}
        line = next(iter(last.values()))
        title = f"{line['data']}: {line['num_queries']} queries of classes never trained on"
        print_scores(title, {_SHOWN[model]: scores for model, scores in last.items()})
    else:
        console.print("No evaluation: name labeled images of other classes with --eval to see recall and MAP@R.")
    console.print(f"Run folder: {folder}   model: {folder / 'model'}")


def print_scores(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """A table of metrics, in percent."""
    first = next(iter(rows.values()))
    recalls = [key for key in first if key.startswith("recall@")]
    keys = [*recalls, "r_precision", "map@r"]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("")
    for key in keys:
        table.add_column(_COLUMNS.get(key, key), justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * scores[key]:.1f}" for key in keys))
    Console(width=max(80, 30 + 12 * len(keys))).print(table)

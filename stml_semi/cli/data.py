"""`data list`, `data prepare`, `data info`: what sources there are, and what is in them."""

import sys
from collections import Counter
from typing import Annotated, Any

import typer

from stml_semi.cli.terminal import DATA_ROOT, one_line_errors
from stml_semi.data.benchmarks.facts import BENCHMARKS, Benchmark


def list_benchmarks(data_root: Annotated[str | None, typer.Option(help=DATA_ROOT)] = None) -> None:
    """The benchmarks by name: counts, license, and whether they are on this machine."""
    with one_line_errors():
        _print_benchmarks(data_root)


def prepare(
    name: Annotated[str, typer.Argument(help="A benchmark, e.g. cub.")],
    source: Annotated[
        list[str],
        typer.Option(
            help="The extracted archive, or archives as downloaded (repeat the flag for several); or hub, for the copy "
            "on the Hugging Face hub that `data list` names."
        ),
    ],
    data_root: Annotated[str | None, typer.Option(help=DATA_ROOT)] = None,
) -> None:
    """Check an official archive and write one parquet table per split. Resumes where it was interrupted.

    Example: stml-semi data prepare cub --source CUB_200_2011.tgz --data-root ~/data
    """
    with one_line_errors():
        _prepare(name, source, data_root)


def info(
    source: Annotated[str, typer.Argument(help="Images: what --labeled or --unlabeled take.")],
    data_root: Annotated[str | None, typer.Option(help=DATA_ROOT)] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the class.")] = None,
    sample: Annotated[int, typer.Option(help="Images to decode, evenly spaced; 0 for all.", min=0)] = 1000,
) -> None:
    """What is in a source: rows, classes, image sizes, and files that cannot be read."""
    with one_line_errors():
        _describe(source, data_root, sample=sample, image_column=image_column, label_column=label_column)


def _print_benchmarks(root: str | None) -> None:
    """A table of all benchmarks and of what is on this machine."""
    from rich import box
    from rich.table import Table

    from stml_semi.data.benchmarks.data_root import ROOT_VARIABLE, data_root, presence

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "what", "expected", "here", "license", "copy on the hub"):
        table.add_column(column, no_wrap=column in ("name", "here"))
    for known in BENCHMARKS.values():
        table.add_row(
            known.name,
            known.title,
            _expected(known),
            presence(known.name, root),
            known.license,
            known.hub.id if known.hub else "",
        )
    console = _console(sys.stdout)
    console.print(table)
    place = data_root(root)
    console.print(f"Data root: {place}" if place else f"No data root: set --data-root or ${ROOT_VARIABLE}.")


def _expected(known: Benchmark) -> str:
    """`train 5,864 of 100` and so on: images of classes."""
    lines = []
    for name, split in known.splits.items():
        about = "" if split.exact else "about "
        classes = f" of {split.classes:,}" if split.classes else ""
        queries = f", {split.queries:,} queries" if split.queries else ""
        lines.append(f"{name} {about}{split.images:,}{classes}{queries}")
    return "\n".join(lines)


def _prepare(name: str, sources: list[str], root: str | None) -> None:
    """Writes the tables of a benchmark, with a progress bar, and says where they are.

    Raises:
        BadInput: as `prepare`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stml_semi.data.benchmarks.prepare import prepare as prepare_benchmark

    errors = _console(sys.stderr)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=not errors.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    with bar:
        tables = prepare_benchmark(name, sources, root, report)
    output = _console(sys.stdout)
    for table in tables:
        classes = f" of {table.classes:,} classes" if table.classes else ""
        state = "" if table.new else " (there already)"
        output.print(f"{table.path}: {table.images:,} images{classes}{state}")
    output.print(f"License: {BENCHMARKS[name].license}")


def _describe(spec: str, root: str | None, *, sample: int, image_column: str | None, label_column: str | None) -> None:
    """Rows, classes, image sizes, bad files of anything that --labeled or --unlabeled take.

    Args:
        spec: what the user typed.
        root: of the benchmarks, None for $STML_DATA.
        sample: how many images are decoded, evenly spaced over the rows; 0 for all.
        image_column: as in `open_source`.
        label_column: as in `open_source`.

    Raises:
        BadInput: as `open_source`.
    """
    import numpy as np

    from stml_semi.data.images import BadImage, read_image
    from stml_semi.data.sources.open_source import open_source

    table = open_source(
        spec, flag="data info", labels="optional", image_column=image_column, label_column=label_column, data_root=root
    )
    lines = {"images": f"{len(table):,} ({table.name})"}
    if table.labels is not None:
        counts = np.sort(np.bincount(table.labels))
        lines["classes"] = (
            f"{len(table.classes):,}, of {counts[0]} to {counts[-1]} images (median {counts[len(counts) // 2]}): "
            f"{', '.join(table.classes[:3])}{', ...' if len(table.classes) > 3 else ''}"
        )
    if table.skipped:
        lines["skipped"] = "\n".join(table.skipped)
    if table.queries is not None:
        lines["protocol"] = f"{int(table.queries.sum()):,} queries against the others"
    rows = np.unique(np.linspace(0, len(table) - 1, min(sample or len(table), len(table))).astype(np.int64))
    sizes, shown, bad = [], [], []
    for row in rows:
        try:
            width, height = read_image(table.source(int(row))).size
        except BadImage as error:
            bad.append(f"{table.describe(int(row))}: {error}")
            continue
        sizes.append((width, height))
        if len(shown) < 5:
            shown.append(f"{table.describe(int(row))}: {width} x {height}")
    if sizes:
        widths, heights = zip(*sizes, strict=True)
        (usual, times), *_ = Counter(sizes).most_common(1)
        lines["sizes"] = (
            f"{min(widths)} to {max(widths)} px wide, {min(heights)} to {max(heights)} px high; most often "
            f"{usual[0]} x {usual[1]} ({100 * times / len(sizes):.0f}%)"
        )
    lines["such as"] = "\n".join(shown) or "-"
    rest = "" if len(rows) == len(table) else " evenly spaced ones (--sample 0 reads all)"
    lines["unreadable"] = "\n".join(
        [f"{len(bad):,} of {len(rows):,}{rest}", *bad[:20], *(["..."] if len(bad) > 20 else [])]
    )

    from rich.table import Table

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, text in lines.items():
        grid.add_row(name, text)
    _console(sys.stdout).print(grid)


def _console(stream: Any) -> Any:
    """Wide where there is no terminal: a path that is cut in two cannot be copied."""
    from stml_semi.runtime.terminal_text import PlainConsole

    width = None if stream.isatty() else 200
    return PlainConsole(file=stream, width=width)

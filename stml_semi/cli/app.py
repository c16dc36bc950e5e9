"""The command line: parse, build a TrainConfig, call. Heavy imports stay inside the commands."""

import inspect
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from stml_semi.cli import commands
from stml_semi.cli.terminal import is_main, one_line_errors, quiet_libraries, stop
from stml_semi.config import TrainConfig, flag, read_recipe
from stml_semi.runtime.errors import BadInput

app = typer.Typer(
    name="stml-semi",
    help="Turn a pretrained image backbone into a retrieval model for your own pictures: a few labels, many unlabeled "
    "images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Benchmarks and other sources: what is here, and how it gets here.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _options() -> list[inspect.Parameter]:
    """One option per field of TrainConfig. All are text here: TrainConfig alone knows what is valid."""
    options = []
    for name, field in TrainConfig.model_fields.items():
        panel = next(m for m in field.metadata if isinstance(m, str))
        switch = field.annotation is bool
        option = typer.Option(
            flag(name),
            help=" ".join((field.description or "").split()),
            rich_help_panel=panel,
            show_default=False if switch or field.default is None else str(field.default),
            metavar=None if switch else _metavar(field.annotation),
        )
        kind = bool if switch else str | None
        default = False if switch else None
        options.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        )
    recipe = typer.Option(
        help="YAML file of `key: value` lines, keys like the flags with underscores. Flags override it.",
        rich_help_panel="Run",
        metavar="FILE",
        show_default=False,
    )
    annotation = Annotated[str | None, recipe]
    return [*options, inspect.Parameter("recipe", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)]


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "NAME"
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return _metavar(get_args(annotation)[0])
    return {int: "N", float: "X"}.get(annotation, "TEXT")


def _values(flags: dict[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig: those of the recipe, overridden by flags.

    Raises:
        BadInput: as `read_recipe`.
    """
    given = {key: value for key, value in flags.items() if key != "recipe" and value not in (None, False)}
    return (read_recipe(flags["recipe"]) if flags["recipe"] else {}) | given


def _train(command: Literal["semi", "unsup", "sup"], flags: dict[str, Any]) -> None:
    with one_line_errors():
        for name, needless in (("labeled", "unsup"), ("unlabeled", "sup")):
            if flags[name] and command == needless:
                raise BadInput(f"{flag(name)}: {command} does not use it; leave it out, or use `semi`")
        values = _values(flags)
        from stml_semi.training.resolve import resolve

        config = resolve(command, values)
        quiet_libraries()
        from stml_semi.training.run import run

        result = run(config)
    if is_main():
        from stml_semi.cli.printing import print_plan, print_result

        if result.plan is None:
            print_result(result)
        else:
            print_plan(result.plan)
        if result.problem is not None:
            stop(result.problem, 1)


def _add(command: Literal["semi", "unsup", "sup"], text: str) -> None:
    def train(**flags: Any) -> None:
        _train(command, flags)

    train.__doc__ = text
    train.__signature__ = inspect.Signature(_options())  # pyright: ignore[reportFunctionMemberAccess]
    app.command(command)(train)


_add(
    "semi",
    """Train on labeled and unlabeled images together.

    Example: accelerate launch cli.py semi --labeled birds/ --unlabeled photos/ --backbone facebook/dinov2-small

    Any flag can stand in a recipe (--recipe), with underscores for hyphens; flags override the recipe. Batch sizes
    are global: the same command takes the same steps on any number of processes.
    """,
)
_add(
    "unsup",
    """Train on unlabeled images alone: the setting of the STML paper.

    Example: accelerate launch cli.py unsup --unlabeled photos/ --eval birds/
    """,
)
_add(
    "sup",
    """Train on labeled images alone: the baseline that unlabeled images have to beat.

    Example: accelerate launch cli.py sup --labeled birds/ --eval other-birds/
    """,
)


_used = (commands.evaluate, commands.export, commands.push)
_used += (commands.embed, commands.search, commands.browse, commands.dedup)
for _command in _used:
    app.command()(_command)


@data_app.command("list")
def list_data(data_root: Annotated[str | None, typer.Option(help=commands.DATA_ROOT)] = None) -> None:
    """The benchmarks by name: counts, license, and whether they are on this machine."""
    with one_line_errors():
        from stml_semi.cli.data import list_benchmarks

        list_benchmarks(data_root)


@data_app.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(help="A benchmark, e.g. cub.")],
    source: Annotated[
        list[str],
        typer.Option(
            help="The extracted archive, or archives as downloaded (repeat the flag for several); or hub, for the copy "
            "on the Hugging Face hub that `data list` names."
        ),
    ],
    data_root: Annotated[str | None, typer.Option(help=commands.DATA_ROOT)] = None,
) -> None:
    """Check an official archive and write one parquet table per split. Goes on where it was interrupted.

    Example: python cli.py data prepare cub --source CUB_200_2011.tgz --data-root ~/data
    """
    with one_line_errors():
        from stml_semi.cli.data import prepare_benchmark

        prepare_benchmark(name, source, data_root)


@data_app.command("info")
def describe_data(
    source: Annotated[str, typer.Argument(help="Images: what --labeled or --unlabeled take.")],
    data_root: Annotated[str | None, typer.Option(help=commands.DATA_ROOT)] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the class.")] = None,
    sample: Annotated[int, typer.Option(help="Pictures to decode, evenly spaced; 0 for all.", min=0)] = 1000,
) -> None:
    """What is in a source: rows, classes, picture sizes, and files that cannot be read."""
    with one_line_errors():
        from stml_semi.cli.data import describe_source

        describe_source(source, data_root, sample=sample, image_column=image_column, label_column=label_column)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders; several are shown side by side.")],
    output: Annotated[
        str | None,
        typer.Option(help="File to write. Default: report.html in the run, or comparison.html beside several."),
    ] = None,
) -> None:
    """Write the page of a run: scores, curves, neighbors before and after, what unlabeled pictures were used.

    Example: python cli.py report runs/demo runs/baseline --output compared.html
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.report.write import report_runs

        page = report_runs(runs, output)
    print(page)


def _doctor(**flags: Any) -> None:
    """Would a run work here, and how fast? Looks at the machine, the pictures, the model and the disk.

    Example: python cli.py doctor --labeled birds/ --unlabeled photos/ --backbone facebook/dinov2-small

    Takes every flag of `semi`, `unsup` and `sup`. Exit code 1 if something is broken. Nothing is trained and nothing is
    left behind.
    """
    with one_line_errors():
        values = _values(flags)
        quiet_libraries()
        from stml_semi.cli.printing import print_finding
        from stml_semi.training.preflight.doctor import examine

        broken = 0
        for finding in examine(values):
            print_finding(finding)
            broken += finding.level == "broken"
    print(f"{broken} problem{'s' * (broken != 1)} to mend." if broken else "Nothing is broken.")
    sys.exit(1 if broken else 0)


_doctor.__signature__ = inspect.Signature(_options())  # pyright: ignore[reportFunctionMemberAccess]
app.command("doctor")(_doctor)


def main() -> None:
    """Entry point of `cli.py` and of the `stml-semi` command."""
    arguments = sys.argv[1:]
    while "--resume" in arguments and arguments[arguments.index("--resume") + 1 :][:1] == ["latest"]:
        del arguments[arguments.index("--resume") + 1]  # What --resume means anyway.
    app(arguments, prog_name=Path(sys.argv[0]).name)

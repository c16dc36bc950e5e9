"""The command line: parse, build a TrainConfig, call. Heavy imports stay inside the commands."""

import inspect
import json
import os
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import typer

from stml_semi.config import TrainConfig, flag, read_recipe
from stml_semi.errors import RunFailed

app = typer.Typer(
    name="stml-semi",
    help="Turn a pretrained image backbone into a retrieval model for your own pictures: a few labels, many unlabeled "
    "images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def _train(command: Literal["semi", "unsup", "sup"], flags: dict[str, Any]) -> None:
    recipe = flags.pop("recipe")
    with _one_line_errors():
        given = {key: value for key, value in flags.items() if value not in (None, False)}
        for name, needless in (("labeled", "unsup"), ("unlabeled", "sup")):
            if name in given and command == needless:
                raise ValueError(f"{flag(name)}: {command} does not use it; leave it out, or use `semi`")
        values = (read_recipe(recipe) if recipe else {}) | given
        from stml_semi.run import resolve

        config = resolve(command, values)
        _quiet_libraries()
        from stml_semi.run import run

        result = run(config)
    if _is_main():
        from stml_semi.tables import print_plan, print_result

        if result.plan is None:
            print_result(result)
        else:
            print_plan(result.plan)


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


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="A run folder, an exported model, a hub id, or a bare backbone.")],
    data: Annotated[str, typer.Option(help="Labeled images: like --labeled of `semi`, e.g. kanji:test.")],
    image_column: Annotated[str | None, typer.Option(help="Column of --data with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of --data with the class.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode images.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score a model on labeled images: recall@k, R-precision and MAP@R, each image against all others.

    Example: python cli.py evaluate --model runs/demo --data kanji:test
    """
    with _one_line_errors():
        _quiet_libraries()
        from stml_semi.scoring import evaluate_model

        line = evaluate_model(
            model,
            data,
            image_column=image_column,
            label_column=label_column,
            batch_size=batch_size,
            num_workers=num_workers,
        )
    if not _is_main():
        return
    if as_json:
        print(json.dumps(line))
    else:
        from stml_semi.tables import print_scores

        print_scores(f"{data}, {line['num_queries']} queries", {model: line})


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
    with _one_line_errors():
        _quiet_libraries()
        from stml_semi.reporting import report_runs

        page = report_runs(runs, output)
    print(page)


@app.command()
def doctor(
    labeled: Annotated[str | None, typer.Option(help="Like --labeled of `semi`.")] = None,
    unlabeled: Annotated[str | None, typer.Option(help="Like --unlabeled of `semi`.")] = None,
    evaluation: Annotated[str | None, typer.Option("--eval", help="Like --eval of `semi`.")] = None,
    labeled_image_column: Annotated[str | None, typer.Option(help="Column of --labeled with the images.")] = None,
    labeled_label_column: Annotated[str | None, typer.Option(help="Column of --labeled with the class.")] = None,
    unlabeled_image_column: Annotated[str | None, typer.Option(help="Column of --unlabeled with the images.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Like --backbone of `semi`.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Where run folders will be. Default: runs.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe; the options above override it.", metavar="FILE")] = None,
) -> None:
    """Would a run work here, and how fast? Looks at the machine, the pictures, the model and the disk.

    Example: python cli.py doctor --labeled birds/ --unlabeled photos/ --backbone facebook/dinov2-small

    Exit code 1 if something is broken. Nothing is trained and nothing is left behind.
    """
    given = {
        "labeled": labeled,
        "unlabeled": unlabeled,
        "eval": evaluation,
        "labeled_image_column": labeled_image_column,
        "labeled_label_column": labeled_label_column,
        "unlabeled_image_column": unlabeled_image_column,
        "backbone": backbone,
        "output_dir": output_dir,
    }
    with _one_line_errors():
        values = read_recipe(recipe) if recipe else {}
        values |= {name: value for name, value in given.items() if value is not None}
        _quiet_libraries()
        from stml_semi.doctor import examine
        from stml_semi.tables import print_finding

        broken = 0
        for finding in examine(values):
            print_finding(finding)
            broken += finding.level == "broken"
    print(f"{broken} problem{'s' * (broken != 1)} to mend." if broken else "Nothing is broken.")
    sys.exit(1 if broken else 0)


class _one_line_errors:
    """Bad input ends with one clear line and exit code 2; what is not the user's doing keeps its traceback."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if isinstance(error, ValueError) and _is_ours(trace):
            _stop(str(error), 2)
        if isinstance(error, RunFailed):
            _stop(str(error), error.exit_code, everywhere=error.everywhere)
        if isinstance(error, KeyboardInterrupt):
            _stop("interrupted", 130)


def _is_ours(trace: types.TracebackType | None) -> bool:
    """Whether an error was raised by this package on purpose, rather than by a library that it called."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _stop(message: str, code: int, *, everywhere: bool = True) -> NoReturn:
    if _is_main():
        print(f"error: {message}", file=sys.stderr)
    elif not everywhere:
        print(f"error: process {os.environ['RANK']}: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


def _is_main() -> bool:
    """Whether this is the first process of `accelerate launch`, known before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def _quiet_libraries() -> None:
    """Bars and advice of the libraries underneath are not about what the user asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()


def main() -> None:
    """Entry point of `cli.py` and of the `stml-semi` command."""
    arguments = sys.argv[1:]
    while "--resume" in arguments and arguments[arguments.index("--resume") + 1 :][:1] == ["latest"]:
        del arguments[arguments.index("--resume") + 1]  # What --resume means anyway.
    app(arguments, prog_name=Path(sys.argv[0]).name)

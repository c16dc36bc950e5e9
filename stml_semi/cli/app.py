"""The command line: a list of commands. Heavy imports stay inside them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stml_semi import __version__
from stml_semi.cli import curation, data, doctor, models, search, train
from stml_semi.cli.help import Command, Group
from stml_semi.cli.terminal import leaves_at_once, print_any_name, whole_output


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"stml-semi {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="stml-semi",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train.semi, train.unsup, train.sup):
    app.command(cls=Command)(command)
for command in (models.evaluate, models.export, models.push, models.report):
    app.command(cls=Command)(command)
for command in (search.embed, search.search, search.browse, search.dedup):
    app.command(cls=Command)(command)
for command in (curation.audit, curation.suggest, curation.groups):
    app.command(cls=Command)(command)
app.command(cls=Command)(doctor.doctor)

data_app = typer.Typer(
    help="Benchmarks and other sources: what is here, and how it gets here.", cls=Group, no_args_is_help=True
)
for name, command in (("list", data.list_benchmarks), ("prepare", data.prepare), ("info", data.info)):
    data_app.command(name, cls=Command)(command)
app.add_typer(data_app, name="data")


@app.callback()
def stml_semi(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a pretrained image backbone into a retrieval model for your own images: a few labels, many unlabeled images.

    Start with `doctor`, which checks that a run would work here, then train with `semi`.
    """


def main() -> None:
    """Entry point of `cli.py` and of the `stml-semi` command: it does not return."""
    with leaves_at_once():
        run()


def run() -> None:
    """Runs what the command line says, and raises SystemExit."""
    arguments = sys.argv[1:]
    while "--resume" in arguments and arguments[arguments.index("--resume") + 1 :][:1] == ["latest"]:
        del arguments[arguments.index("--resume") + 1]  # What --resume means anyway.
    program = Path(sys.argv[0]).name
    print_any_name()
    with whole_output():
        app(arguments, prog_name="python -m stml_semi" if program == "__main__.py" else program)

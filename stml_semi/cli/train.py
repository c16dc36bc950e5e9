"""`semi`, `unsup`, `sup`: one option per field of TrainConfig."""

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from stml_semi.cli.help import METAVARS
from stml_semi.cli.terminal import is_main, one_line_errors, quiet_libraries, stop
from stml_semi.config import Command, TrainConfig, flag, panel
from stml_semi.run_folder.recipe import read_recipe
from stml_semi.runtime.errors import BadInput


def with_training_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a function one option per field of TrainConfig, and --recipe. All are text or switches here: TrainConfig
    alone knows what is valid."""
    options = [_option(name) for name in TrainConfig.model_fields]
    recipe = typer.Option(
        help="YAML file of `key: value` lines, keys like the flags with underscores, or the name of a recipe that "
        "ships with the program, such as kanji. Flags override it.",
        rich_help_panel="Run",
        metavar="FILE",
        show_default=False,
    )
    options.append(_parameter("recipe", None, Annotated[str | None, recipe]))
    command.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    return command


def _option(name: str) -> inspect.Parameter:
    field = TrainConfig.model_fields[name]
    switch = field.annotation is bool
    choices = choices_of(field.annotation)
    option = typer.Option(
        flag(name),
        help=_help(name, choices),
        rich_help_panel=panel(name),
        show_default=False,
        metavar=None if switch else _metavar(field.annotation),
        autocompletion=lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)],
    )
    return _parameter(name, False if switch else None, Annotated[bool if switch else str | None, option])


def _help(name: str, choices: list[str]) -> str:
    """What a field is for, its choices and its default."""
    field = TrainConfig.model_fields[name]
    text = " ".join((field.description or "").split())
    if choices and "a number" not in text:
        text += f" Choices: {', '.join(choices)}."
    # A default that depends on the data is part of the text.
    stated = "Default:" in text or field.annotation is bool or field.default is None
    return text if stated else f"{text} Default: {field.default}."


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def choices_of(annotation: Any) -> list[str]:
    """The words that a field takes; a number may be among what else it takes."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [choice for part in get_args(annotation) for choice in choices_of(part)]
    return []


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "CHOICE"
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return _metavar(get_args(annotation)[0])
    return METAVARS[annotation.__name__]


def field_values(flags: dict[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig: those of the recipe, overridden by flags.

    Raises:
        BadInput: as `read_recipe`.
    """
    given = {key: value for key, value in flags.items() if key != "recipe" and value not in (None, False)}
    recipe = read_recipe(flags["recipe"]) if flags["recipe"] else {}
    if "learning_rate" in given:
        recipe.pop("label_learning_rate", None)  # It belongs to the recipe's learning rate.
    return recipe | given


@with_training_flags
def semi(**flags: Any) -> None:
    """Train on labeled and unlabeled images together.

    Example: stml-semi semi --labeled birds/ --unlabeled photos/ --backbone facebook/dinov2-small

    Any flag can stand in a recipe (--recipe), with underscores for hyphens; flags override the recipe. Batch sizes
    are global: the same command takes the same steps on any number of processes.
    """
    _train("semi", flags)


@with_training_flags
def unsup(**flags: Any) -> None:
    """Train on unlabeled images alone: the setting of the STML paper.

    Example: stml-semi unsup --unlabeled photos/ --eval birds/
    """
    _train("unsup", flags)


@with_training_flags
def sup(**flags: Any) -> None:
    """Train on labeled images alone: the baseline that unlabeled images have to beat.

    Example: stml-semi sup --labeled birds/ --eval other-birds/
    """
    _train("sup", flags)


def _train(command: Command, flags: dict[str, Any]) -> None:
    with one_line_errors():
        for name, needless in (("labeled", "unsup"), ("unlabeled", "sup")):
            if flags[name] and command == needless:
                raise BadInput(f"{flag(name)}: {command} does not use it; leave it out, or use `semi`")
        values = field_values(flags)
        from stml_semi.training.resolve import resolve

        config = resolve(command, values)
        quiet_libraries()
        if config.dry_run:
            from stml_semi.training.preflight.dry_run import dry_run

            plan, result = dry_run(config), None
        else:
            from stml_semi.training.run import run

            plan, result = {}, run(config)
    if not is_main():
        return
    from stml_semi.cli.printing import print_plan, print_result

    if result is None:
        print_plan(plan)
        return
    print_result(result)
    if result.problem is not None:
        stop(result.problem, 1)

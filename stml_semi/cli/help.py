"""What `--help` shows of a flag's value: TEXT, N, X (a number), its choices, or nothing for a switch."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

METAVARS = {"bool": "", "int": "N", "float": "X", "list[int]": "N", "list[str]": "TEXT", "str": "TEXT"}


class Command(TyperCommand):
    """A command of this program."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters."""
        return _with_metavars(super().get_params(ctx))


class Group(TyperGroup):
    """The commands of this program."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters."""
        return _with_metavars(super().get_params(ctx))


def _with_metavars(params: list[Any]) -> list[Any]:
    for param in params:
        if param.metavar is None and param.param_type_name == "option":
            param.metavar = METAVARS.get(param.bare_type())
    return params

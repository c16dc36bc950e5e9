"""Recipes, and the config.yaml of a run, which is one: YAML to TrainConfig. Errors name the key and the fix."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stml_semi.config import TrainConfig, flag
from stml_semi.runtime.errors import BadInput, one_line

_SHIPPED = Path(__file__).parents[1] / "recipes"
_RECIPES = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[2] / "recipes"
"""Inside the package where that was installed from a wheel, else at the top of the checkout."""


def build_config(values: dict[str, Any], origin: str = "the command line") -> TrainConfig:
    """A validated configuration.

    Args:
        values: fields by name.
        origin: where they come from, for error messages.

    Raises:
        BadInput: one line naming the flag and the fix (unknown key with the closest match, wrong type or range,
            fields that do not fit together).
    """
    refuse_unknown(values, origin)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            message = f"{flag(str(first['loc'][0]))} {first['input']!r}: {message[:1].lower()}{message[1:]}"
        raise BadInput(message) from None


def refuse_unknown(values: dict[str, Any], origin: str) -> None:
    """
    Raises:
        BadInput: a key is no field, with the closest match.
    """
    for key in values:
        if key not in TrainConfig.model_fields:
            close = difflib.get_close_matches(str(key).replace("-", "_"), TrainConfig.model_fields, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "`semi --help` lists the keys"
            raise BadInput(f"unknown key '{key}' in {origin}: {hint}")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Fields set by a recipe.

    Args:
        path: a file, or the name of a recipe that ships with the program.

    Raises:
        BadInput: no such file or name (with the closest one), no YAML mapping, unknown key.
    """
    path = Path(path)
    shipped = {file.stem: file for file in sorted(_RECIPES.glob("*.yaml"))}
    if not path.is_file():
        known = [str(file) for file in sorted(path.parent.glob("*.yaml"))] + list(shipped)
        if str(path) not in shipped:
            close = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise BadInput(f"--recipe {path}: no such file, and no recipe of that name; {hint}")
        path = shipped[str(path)]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"--recipe {path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise BadInput(f"--recipe {path}: expected `key: value` lines such as `max_steps: 500`")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    refuse_unknown(values, str(path))
    return values


def read_config(path: Path) -> TrainConfig:
    """The configuration that a run wrote down.

    Raises:
        BadInput: as `read_recipe` and `build_config`.
    """
    return build_config(read_recipe(path), origin=str(path))

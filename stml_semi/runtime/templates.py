"""Filling in the templates of the package: pages of HTML with one head and one look, and text."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

PAGE_STYLE = "runtime/pages/style.css"
"""What all pages look like; those that extend runtime/pages/base.html have it inside."""


def render(
    template: str, values: dict[str, Any], *, filters: dict[str, Callable[..., Any]] | None = None, escape: bool = True
) -> str:
    """Fills in a template. A name that is missing is an error.

    Args:
        template: its path inside the package. Pages extend runtime/pages/base.html, which wants `title` and `kind`.
        values: what it shows.
        filters: by the name that the template uses.
        escape: values become text of HTML, whatever they contain.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stml_semi", ""),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(values)


def read_asset(path: str) -> bytes:
    """A file of the package, by its path inside it."""
    return files("stml_semi").joinpath(path).read_bytes()

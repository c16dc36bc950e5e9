"""Pages of HTML: one head, one look, one way to fill in templates."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

BASE_STYLE = "runtime/pages/style.css"


def render(template: str, *, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fills in a template of the package. Values are escaped; a name that is missing is an error.

    Args:
        template: its path inside the package; it extends runtime/pages/base.html, which wants `title` and `kind`.
        filters: by the name that the template uses.
        values: what it shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stml_semi", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(**values)


def read_asset(path: str) -> bytes:
    """A file of the package, by its path inside it."""
    return files("stml_semi").joinpath(path).read_bytes()

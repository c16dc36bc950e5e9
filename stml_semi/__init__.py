"""Turn a pretrained image backbone into a retrieval model: a few labels, many unlabeled images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stml_semi.hub import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds: only who loads a model should wait for them.
    if name == "load":
        from stml_semi.hub import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

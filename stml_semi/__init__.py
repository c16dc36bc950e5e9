"""Turn a pretrained image backbone into a retrieval model: a few labels, many unlabeled images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stml_semi.config import TrainConfig
    from stml_semi.metrics import retrieval_metrics
    from stml_semi.search.embed import embed_source as embed
    from stml_semi.search.index import Index
    from stml_semi.sharing.evaluate import evaluate_model as evaluate
    from stml_semi.sharing.load import load
    from stml_semi.training.api import train

__version__ = "0.1.0"
__all__ = ["Index", "TrainConfig", "__version__", "embed", "evaluate", "load", "retrieval_metrics", "train"]

# Importing torch and transformers takes seconds: only those who use a name wait for what it needs.
_HOMES = {
    "Index": "search.index:Index",
    "TrainConfig": "config:TrainConfig",
    "embed": "search.embed:embed_source",
    "evaluate": "sharing.evaluate:evaluate_model",
    "load": "sharing.load:load",
    "retrieval_metrics": "metrics:retrieval_metrics",
    "train": "training.api:train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""`stml_semi.train`: a run from Python, in one call."""

from typing import Any

from stml_semi.config import command_of
from stml_semi.training.resolve import resolve
from stml_semi.training.run import Result, run


def train(*, labeled: str | None = None, unlabeled: str | None = None, **fields: Any) -> Result:
    """Trains as the command line does: on labels and unlabeled images (`semi`), or on either alone (`sup`, `unsup`).

    Programs that call this need the usual guard `if __name__ == "__main__":`, since decoding processes import them.

    Args:
        labeled: what --labeled takes.
        unlabeled: what --unlabeled takes.
        fields: other fields of TrainConfig; what is missing is filled in from data and backbone.

    Returns:
        Run folder, evaluation lines and the claim about the evaluated classes.

    Raises:
        BadInput: naming the field and the fix; nothing has been written then.
        RunFailed: the run could not be finished.
    """
    values = {"labeled": labeled, "unlabeled": unlabeled, **fields}
    return run(resolve(command_of(labeled, unlabeled), values))

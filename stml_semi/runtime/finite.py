"""Numbers that are NaN or too large are refused with the names of what they belong to."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stml_semi.runtime.errors import BadInput

_MOST_NAMES = 3


def check_lengths(embeddings: Tensor, what: str, name: Callable[[int], str], fix: str) -> None:
    """Embeddings must have a length: neither NaN nor infinity, nor numbers whose squares overflow float32.

    Args:
        embeddings: (N, d).
        what: whose embeddings, for the message.
        name: how a user finds the image of a row.
        fix: what to do.

    Raises:
        BadInput: some have none; it names their images.
    """
    rows = (~torch.linalg.vector_norm(embeddings.float(), dim=1).isfinite()).nonzero().flatten().tolist()
    if rows:
        shown = ", ".join([*map(name, rows[:_MOST_NAMES]), *(["..."] if len(rows) > _MOST_NAMES else [])])
        raise BadInput(
            f"{what}: {len(rows)} of {len(embeddings)} embeddings are NaN, infinite or too large ({shown}): {fix}"
        )


def check_weights(module: nn.Module, what: str, fix: str) -> None:
    """Parameters must be finite, and buffers not NaN; masks among these hold infinity on purpose.

    Args:
        module: the model.
        what: where its weights come from.
        fix: what to do.

    Raises:
        BadInput: some are not; it names the first.
    """
    broken = [name for name, value in module.named_parameters() if not _ends(value).isfinite().all()]
    broken += [name for name, value in module.named_buffers() if _ends(value).isnan().any()]
    if broken:
        others = f" and {len(broken) - 1} others" if len(broken) > 1 else ""
        raise BadInput(f"{what}: holds weights that are NaN or infinite ({broken[0]}{others}): {fix}")


def _ends(values: Tensor) -> Tensor:
    """The least and the largest, NaN if there is one: without a copy of the values, which may be large."""
    if not values.numel() or not values.is_floating_point():
        return torch.zeros(2)
    return torch.stack(values.detach().aminmax())

"""Weights between those before training and those after it.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (WiSE-FT).

Head f is interpolated along with the backbone, towards the weights that it started with: training moved both together,
so the trained head does not fit features that lie halfway back. At the start f is an orthogonal map of the backbone's
own features, so the path begins at the frozen backbone, as WiSE-FT's begins at the zero-shot model. (A head narrower
than the features begins at a projection of them; `serve_features` gives the features themselves.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stml_semi.models.embedder import Embedder


def start_of(embedder: Embedder) -> dict[str, Tensor]:
    """A copy, in main memory, of what training will change in an untrained model's backbone: of frozen layers nothing.

    Statistics of BatchNorm count as weights. Of low-rank updates only B is copied, which starts at zero: the update is
    A times B, so with A as trained the merged weights are interpolated exactly.
    """
    fixed = {name for name, p in embedder.named_parameters() if not p.requires_grad or ".lora_A." in name}
    return {
        name: value.detach().cpu().clone()
        for name, value in embedder.state_dict().items()
        if name.startswith("backbone.") and name not in fixed and value.is_floating_point()
    }


def interpolate(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """alpha x trained + (1 - alpha) x start, on the CPU. Exactly `start` at 0, and `trained` at 1.

    Args:
        start: from `start_of`; what it lacks stays as trained.
        trained: the state of the same model after training.
        alpha: share of the trained weights, 0..1.
    """
    return {
        name: torch.lerp(start[name], value.detach().cpu(), alpha) if name in start else value
        for name, value in trained.items()
    }


def serve_features(embedder: Embedder) -> None:
    """Makes head f the identity: embeddings are then the pooled features of the backbone themselves."""
    width = embedder.pooling.num_features
    head = nn.Linear(width, width).requires_grad_(False)
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    embedder.head_f = head.to(embedder.head_f.weight.device)

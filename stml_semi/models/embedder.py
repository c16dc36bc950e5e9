"""Backbone -> pooling -> heads f (retrieval) and g (auxiliary)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stml_semi.data.views import Normalization
from stml_semi.models.keyed_noise import KeyedNoise, is_random
from stml_semi.models.pooling import Pooling, pool_output


class Embeddings(NamedTuple):
    """Embeddings of a batch, not normalized."""

    f: Tensor
    """(B, embedding_dim): the retrieval head, what is served."""
    g: Tensor
    """(B, auxiliary_dim): the auxiliary head, used in training only."""


class Embedder(nn.Module):
    """Maps images to `Embeddings`. One forward pass may carry labeled images and unlabeled views together."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Any,
        pooling: Pooling,
        normalization: Normalization,
        *,
        embedding_dim: int,
        auxiliary_dim: int,
        micro_batch_size: int | None = None,
        batch_statistics: bool = False,
    ) -> None:
        """
        Args:
            backbone: transformers model.
            pooling: from `resolve_pooling`.
            normalization: mean and standard deviation per channel for uint8 input.
            embedding_dim: width of f.
            auxiliary_dim: width of g.
            micro_batch_size: most images in one forward part; the parts are recomputed in the backward pass
                (exact gradients, memory of one part). None: one part.
            batch_statistics: let BatchNorm use and learn the statistics of batches in training.
        """
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.micro_batch_size = micro_batch_size
        self.batch_statistics = batch_statistics
        self.is_random = is_random(backbone)
        self.head_f = _head(pooling.num_features, embedding_dim)
        self.head_g = _head(pooling.num_features, auxiliary_dim)
        self.register_buffer("mean", torch.as_tensor(normalization.mean).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.as_tensor(normalization.std).float().view(1, 3, 1, 1), persistent=False)
        self.channels_last = any(
            isinstance(m, nn.Conv2d) and m.weight.shape[2] != m.stride[0] for m in backbone.modules()
        )
        self._compiled: Callable[..., Embeddings] | None = None

    def forward(self, pixels: Tensor, keys: Tensor | None = None) -> Embeddings:
        """Embeds a batch, whole or in parts of `micro_batch_size`.

        Args:
            pixels: (B, 3, H, W), uint8 or already normalized float.
            keys: (B,) int64 from `row_keys`: what dropout and stochastic depth are a function of in training.
                Without them they come from torch's generator.

        Returns:
            Embeddings(f (B, d), g (B, e)).
        """
        size = self.micro_batch_size
        # Evaluation comes with batches of many sizes, each of which would be compiled anew.
        embed = self._embed if self._compiled is None or torch.is_inference_mode_enabled() else self._compiled
        if size is None or len(pixels) <= size:
            return embed(pixels, keys)
        split = zip(pixels.split(size), [None] * len(pixels) if keys is None else keys.split(size), strict=False)
        if torch.is_grad_enabled():
            # Non-reentrant checkpointing replays autocast and noise: each part's graph exists only while it is used.
            parts = [checkpoint(embed, *part, use_reentrant=False) for part in split]
        else:
            parts = [embed(*part) for part in split]
        return Embeddings(torch.cat([part.f for part in parts]), torch.cat([part.g for part in parts]))

    def compile_steps(self) -> None:
        """Compiles the passes of training steps; parameters keep their names, so nothing else has to know."""
        assert not self.is_random, "keyed noise does not compile"
        self._compiled = torch.compile(self._embed, dynamic=False)

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled backbone features (B, num_features), before the heads: what the frozen backbone offers."""
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() / 255 - self.mean) / self.std
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = pixels.contiguous(memory_format=layout)
        return pool_output(self.backbone(pixel_values=pixels), self.pooling)

    def _embed(self, pixels: Tensor, keys: Tensor | None = None) -> Embeddings:
        noise = nullcontext() if keys is None or not self.training else KeyedNoise(keys)
        with noise:
            features = self.features(pixels)
        return Embeddings(self.head_f(features), self.head_g(features))

    def train(self, mode: bool = True) -> "Embedder":
        """Training mode, but BatchNorm keeps its pretrained statistics: those of a batch depend on how it is split."""
        super().train(mode)
        for module in () if self.batch_statistics else self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _head(num_features: int, width: int) -> nn.Linear:
    head = nn.Linear(num_features, width)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def freeze_unused(embedder: Embedder, size: tuple[int, int]) -> list[str]:
    """Switches off the gradient of parameters that no embedding depends on (mask tokens, poolers): their names.

    DistributedDataParallel stops at parameters that never get a gradient, and optimizers would only decay them.
    """
    embedder.eval().zero_grad()  # One gray image must not move the statistics of a BatchNorm.
    output = embedder._embed(torch.zeros(1, 3, *size))
    (output.f.sum() + output.g.sum()).backward()
    unused = [name for name, p in embedder.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        embedder.get_parameter(name).requires_grad_(False)
    embedder.zero_grad()
    return unused


def unit_length(f: Tensor) -> Tensor:
    """Embeddings as they are served: float32, unit length. (B, d) -> (B, d)."""
    return F.normalize(f.float(), dim=1)

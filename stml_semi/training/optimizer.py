"""The optimizer, and the learning rate as a function of the step."""

import math

import torch

from stml_semi.config import TrainConfig
from stml_semi.models.adaptation import depths, find_blocks
from stml_semi.models.embedder import Embedder


def make_optimizer(config: TrainConfig, embedder: Embedder, proxies: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW in one fused pass; only the weights of layers are decayed; proxies learn `proxy_lr_scale` faster.

    Raises:
        BadInput: --layer-decay for a backbone without a list of blocks.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    scales, decayed = _layer_scales(config, embedder), decayed_parameters(embedder)
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if name in decayed else 0.0
            groups.setdefault((scales.get(name, 1.0), decay), []).append(parameter)
    if proxies:
        groups.setdefault((config.proxy_lr_scale, 0.0), []).extend(proxies)
    rates = [
        {"params": params, "weight_decay": decay, "lr": config.peak_learning_rate * scale}
        for (scale, decay), params in groups.items()
    ]
    for group in rates:
        group["peak_lr"] = group["lr"]
    return torch.optim.AdamW(rates, fused=True)


def decayed_parameters(model: torch.nn.Module) -> set[str]:
    """Names of the weights of products and convolutions: what weight decay is for.

    Not of biases, norms, class and register tokens, embeddings of positions: they are no weights, or vectors.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, torch.nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("weight") and parameter.numel() > max(parameter.shape, default=1)
    }


def _layer_scales(config: TrainConfig, embedder: Embedder) -> dict[str, float]:
    """Parameter name -> share of the learning rate: `layer_decay` once for every block between it and the heads."""
    if config.layer_decay == 1:
        return {}
    by_depth = depths(embedder.backbone)
    last = len(find_blocks(embedder.backbone)) + 1
    return {f"backbone.{name}": config.layer_decay ** (last - depth) for name, depth in by_depth.items()}


class TakenSteps:
    """How many steps the optimizer took: fp16 leaves those out whose gradients overflow.

    Nothing waits for the device until `skipped` is asked for. A checkpoint has the count: it is the optimizer's own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
        """
        Args:
            optimizer: a fused one, which counts on the device.
            parameter: one that each of its steps moves.
        """
        self._optimizer, self._parameter = optimizer, parameter
        self._before: torch.Tensor | float = 0.0

    def begin(self) -> None:
        """A step is about to be tried."""
        count = self._count()
        self._before = count.clone() if isinstance(count, torch.Tensor) else count

    def moved(self) -> torch.Tensor:
        """() 1 if the step since `begin` was taken, 0 if it was skipped."""
        count = self._count() - self._before
        return torch.as_tensor(count, device=self._parameter.device)

    def skipped(self, tried: int) -> int:
        """How many of the steps that were tried so far were not taken. Waits for the device."""
        return tried - int(self._count())

    def _count(self) -> torch.Tensor | float:
        return self._optimizer.state.get(self._parameter, {}).get("step", 0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, trust: float) -> None:
    """Gives every group its rate for `step`; nothing of it has to be saved."""
    factor = learning_rate(config, step, trust) / config.peak_learning_rate
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rate(config: TrainConfig, step: int, trust: float) -> float:
    """What backbone and heads learn with.

    Args:
        config: of the run.
        step: from 0.
        trust: how far relations of unlabeled images are trusted then, 0..1.
    """
    return config.rate(trust) * _schedule(config, step)


def _schedule(config: TrainConfig, step: int) -> float:
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    past = (step - config.lr_warmup_steps) / max(config.max_steps - config.lr_warmup_steps, 1)
    if config.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * past)) / 2
    return 1 - past if config.lr_schedule == "linear" else 1.0

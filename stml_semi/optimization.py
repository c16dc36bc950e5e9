"""The optimizer, and the learning rate as a function of the step."""

import math

import torch

from stml_semi.config import TrainConfig
from stml_semi.models.embedder import Embedder


def make_optimizer(config: TrainConfig, embedder: Embedder, proxies: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW in one fused pass; biases, norms and proxies are not decayed, proxies learn `proxy_lr_scale` faster."""
    trained = [p for p in embedder.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
        {"params": proxies, "weight_decay": 0.0, "scale": config.proxy_lr_scale},
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["lr"] = group["peak_lr"] = config.learning_rate * group.pop("scale")
    return torch.optim.AdamW(groups, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Gives every group its rate for `step`; nothing of it has to be saved."""
    factor = learning_rate_factor(config, step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Share of the peak learning rate that `step` (from 0) is taken with."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    past = (step - config.lr_warmup_steps) / max(config.max_steps - config.lr_warmup_steps, 1)
    if config.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * past)) / 2
    return 1 - past if config.lr_schedule == "linear" else 1.0

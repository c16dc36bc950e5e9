"""Training a part of a large backbone, or all of it in less memory: its last blocks, low-rank updates, checkpoints."""

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stml_semi.models.keyed_noise import replayed_noise
from stml_semi.runtime.errors import BadInput


def find_blocks(backbone: nn.Module) -> list[str]:
    """Names of the repeated parts of a backbone, in order: layers of a ViT, stages of a ResNet, ConvNeXt or Swin.

    Raises:
        BadInput: the backbone has none.
    """
    lists = [name for name, module in backbone.named_modules() if _is_list_of_blocks(module)]
    if not lists:
        raise BadInput(
            f"{type(backbone).__name__} has no list of layers: leave out --train-layers, --lora-rank, --layer-decay "
            f"and --gradient-checkpointing"
        )
    level = min(name.count(".") for name in lists)
    outermost = [name for name in lists if name.count(".") == level]
    # One list holds the blocks; several side by side (layer1, layer2, ...) are the blocks.
    if len(outermost) > 1:
        return outermost
    return [f"{outermost[0]}.{i}" for i in range(len(_children(backbone.get_submodule(outermost[0]))))]


def _is_list_of_blocks(module: nn.Module) -> bool:
    children = _children(module)
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not children:
        return False
    return len({type(block) for block in children}) == 1 and bool(_children(children[0]))


def _children(module: nn.Module) -> list[nn.Module]:
    return list(module.children())


def depths(backbone: nn.Module) -> dict[str, int]:
    """Parameter name -> depth: 0 before the blocks, i + 1 in block i, number of blocks + 1 after them."""
    blocks = find_blocks(backbone)
    found, last = {}, 0
    for name, _ in backbone.named_parameters():
        block = next((i for i, prefix in enumerate(blocks) if name.startswith(f"{prefix}.")), None)
        if block is not None:
            last = block + 1
        found[name] = last if block is not None else (len(blocks) + 1 if last else 0)
    return found


def freeze_prefix(backbone: nn.Module, train_layers: str) -> None:
    """Trains only the last blocks and what comes after them.

    Args:
        backbone: changed in place.
        train_layers: all, or last:N. last:0 trains the heads alone.

    Raises:
        BadInput: more blocks than there are.
    """
    if train_layers == "all":
        return
    wanted, count = int(train_layers.removeprefix("last:")), len(find_blocks(backbone))
    if wanted > count:
        raise BadInput(f"--train-layers {train_layers}: this backbone has {count} blocks; take last:{count} or all")
    for name, depth in depths(backbone).items():
        if wanted == 0 or depth <= count - wanted:
            backbone.get_parameter(name).requires_grad_(False)


def add_lora(backbone: nn.Module, rank: int) -> None:
    """Freezes a transformer and adds trainable low-rank updates to the linear layers of its trained blocks.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, through peft.

    Args:
        backbone: changed in place.
        rank: of the updates, which are scaled by 2 (alpha = 2 x rank).

    Raises:
        BadInput: the blocks have no linear layers (a ResNet, say).
    """
    from peft import LoraConfig, inject_adapter_in_model

    prefixes = tuple(f"{block}." for block in find_blocks(backbone))
    linear = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefixes) and module.weight.requires_grad
    ]
    if not linear:
        raise BadInput(f"--lora-rank: {type(backbone).__name__} has no linear layers to adapt; it is meant for ViTs")
    targets = "|".join(re.escape(name) for name in linear)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=f"({targets})"), backbone)


def merged(backbone: Any) -> Any:
    """A backbone in its plain form: low-rank updates added to the weights they update. Others come back as they are."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in backbone.modules()):
        return backbone
    plain = copy.deepcopy(backbone)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            plain.set_submodule(name, module.get_base_layer())
    return plain


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Keeps only the inputs of each block for the backward pass, and computes the rest again there.

    Exact: dropout and stochastic depth fall on the same elements again.
    """
    for name in find_blocks(backbone):
        for block in _innermost(backbone.get_submodule(name)):
            block.forward = partial(_forward, block.forward, block)


def _innermost(block: nn.Module) -> list[nn.Module]:
    """A stage of a pyramid is checkpointed layer by layer."""
    if _is_list_of_blocks(block):
        return _children(block)
    lists = [child for child in _children(block) if _is_list_of_blocks(child)]
    return _children(lists[0]) if len(lists) == 1 else [block]


def _forward(forward: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not block.training or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=replayed_noise, **kwargs)

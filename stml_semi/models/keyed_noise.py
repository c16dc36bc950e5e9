"""Dropout and stochastic depth as a function of the image, not of the process or the part of the batch it is in.

The usual generators number their draws by the order in which they happen: a batch that is split differently drops other
activations, and two machines take different steps. Here every row of a batch has a key (made from seed, step and place
in the global batch), and the draw for its i-th element in the n-th random call is a hash of (key, n, i).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stml_semi.runtime.hashing import mix

# The step of splitmix64's counter, as a signed number.
_GOLDEN = -0x61C8864680B583EB


def row_keys(seed: int, step: int, positions: Tensor) -> Tensor:
    """Keys of the rows at the given places in the global batch of a step. (B,) int64 -> (B,) int64."""
    start = torch.tensor([seed, step], dtype=torch.int64, device=positions.device)
    return mix(positions + mix(start[1] + mix(start[0])))


def uniform(keys: Tensor, call: int, count: int) -> Tensor:
    """Numbers in [0, 1) for every row. (B,) int64 -> (B, count) float32."""
    start = mix(keys + (call * _GOLDEN + 2**63) % 2**64 - 2**63)
    elements = torch.arange(count, device=keys.device) * _GOLDEN
    return (mix(start[:, None] + elements) & 0xFFFFFF).float() * 2.0**-24


class KeyedNoise(TorchFunctionMode):
    """Within this context random draws over a batch come from the keys of its rows."""

    def __init__(self, keys: Tensor, calls: int = 0) -> None:
        """
        Args:
            keys: (B,) int64 from `row_keys`. Tensors of the model are batch-major: their elements divide by B.
            calls: how many draws to count as made.
        """
        super().__init__()
        self.keys = keys
        self.calls = calls

    def __enter__(self) -> Self:
        super().__enter__()
        self._outer, _active.noise = getattr(_active, "noise", None), self
        return self

    def __exit__(self, *error: Any) -> None:
        _active.noise = self._outer
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and _dropout_of_attention(args, kwargs) > 0:
            return self._attention(*args, **kwargs)
        if func is torch.rand:
            shape = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            return self._uniform(shape, kwargs.get("device")).to(kwargs.get("dtype") or torch.get_default_dtype())
        if func is Tensor.bernoulli_:
            tensor, p = args[0], args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return tensor.copy_(self._uniform(tensor.shape, tensor.device) < p)
        return func(*args, **kwargs)

    def _uniform(self, shape: Sequence[int], device: Any) -> Tensor:
        count, rest = divmod(torch.Size(shape).numel(), len(self.keys))
        assert not rest, f"a random tensor of shape {tuple(shape)} does not belong to a batch of {len(self.keys)}"
        self.calls += 1
        return uniform(self.keys.to(device), self.calls, count).view(torch.Size(shape))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        keep = self._uniform(input.shape, input.device) >= p
        # Divided afterwards: in bfloat16 the factor 1 / (1 - p) itself would be rounded.
        return input.mul_(keep).div_(1 - p) if inplace else input * keep / (1 - p)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """The fused kernels draw inside: attention spelled out, for backbones that drop attention weights."""
        assert not is_causal, "image backbones attend to all tokens"
        assert not enable_gqa
        weights = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            weights = (
                weights.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
            )
        return self._dropout(weights.softmax(-1), dropout_p) @ value


_active = threading.local()  # The backward pass, where checkpoints compute again, may run in a thread of its own.


def replayed_noise() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for the first and the second pass through a checkpointed part: both draw the same numbers.

    To be called within the forward pass; what `context_fn` of `torch.utils.checkpoint` asks for.
    """
    noise = getattr(_active, "noise", None)
    return nullcontext(), nullcontext() if noise is None else KeyedNoise(noise.keys, noise.calls)


def _dropout_of_attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    return args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)


def is_random(backbone: nn.Module) -> bool:
    """Whether a backbone draws random numbers in training: dropout of any kind, stochastic depth."""
    rates = [getattr(module, name, 0.0) for module in backbone.modules() for name in ("p", "drop_prob", "dropout_prob")]
    config = getattr(backbone, "config", None)
    fields = {} if config is None else config.to_dict()
    rates += [value for name, value in fields.items() if "drop" in name]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)

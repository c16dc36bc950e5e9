"""The labeled term: losses of pytorch-metric-learning by name, in float32."""

import difflib
import inspect
import re

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from stml_semi.runtime.errors import BadInput

# Where the paper's settings are not the library's defaults.
_SETTINGS: dict[str, dict[str, float]] = {"proxy_anchor": {"margin": 0.1, "alpha": 32}}

# Called otherwise than loss(embeddings, labels) or abstract; broken by the indexing rules of torch >= 2.9 (histogram);
# or with memory outside its state, so that a resumed run would not repeat it (dynamic_soft_margin).
_LEFT_OUT = {
    *("base_metric_loss_function", "generic_pair", "self_supervised", "vicreg"),
    *("histogram", "dynamic_soft_margin"),
}


class LabeledLoss(nn.Module):
    """A metric-learning loss on embeddings and labels; its proxies, if it has any, are its parameters."""

    def __init__(self, name: str, *, num_classes: int, embedding_dim: int) -> None:
        """
        Args:
            name: one of `labeled_losses()`, e.g. proxy_anchor.
            num_classes: labels are 0..num_classes - 1.
            embedding_dim: width d of the embeddings.

        Raises:
            BadInput: unknown name (with the closest match).
        """
        super().__init__()
        losses = labeled_losses()
        if name not in losses:
            close = difflib.get_close_matches(name, losses, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(losses)}"
            raise BadInput(f"--labeled-loss {name}: no such loss; {hint}")
        sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
        accepted = _arguments(losses[name])
        fitting = {key: size for key, size in sizes.items() if key in accepted}
        self.loss = losses[name](**fitting, **_SETTINGS.get(name, {}))

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, "b"]) -> Float32[Tensor, ""]:
        """Float32 also under autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels)


def labeled_losses() -> dict[str, type[nn.Module]]:
    """Losses of pytorch-metric-learning that are called as loss(embeddings, labels), by name."""
    from pytorch_metric_learning import losses

    found = {
        _short_name(name): loss
        for name, loss in inspect.getmembers(losses, inspect.isclass)
        if issubclass(loss, nn.Module)
    }
    known = {"num_classes", "embedding_size"}
    return {
        name: loss
        for name, loss in found.items()
        if name not in _LEFT_OUT and {key for key, needed in _arguments(loss).items() if needed} <= known
    }


def _arguments(loss: type) -> dict[str, bool]:
    """Arguments of a class and whether they are required, those of base classes included as far as they pass through.

    A subclass with **kwargs accepts its base's arguments; only one with *args leaves the required ones to the caller.
    """
    arguments: dict[str, bool] = {}
    passes_on = True
    for base in inspect.getmro(loss):
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                arguments.setdefault(parameter.name, passes_on and parameter.default is parameter.empty)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
        passes_on = passes_on and inspect.Parameter.VAR_POSITIONAL in kinds
    return arguments


def _short_name(class_name: str) -> str:
    """ProxyAnchorLoss -> proxy_anchor; ArcFaceLoss, SoftTripleLoss, ... as their papers write them: one word."""
    name = re.sub(r"(Face|Triple|Con)(?=Loss)", lambda m: m[0].lower(), class_name).removesuffix("Loss")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()

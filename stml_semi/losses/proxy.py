"""The labeled term in float32: Proxy-Anchor, or any loss of pytorch-metric-learning by its name."""

import difflib
import inspect
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from stml_semi.runtime.errors import BadInput

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(B, d) float32 embeddings, (B,) labels -> scalar. If it is a module, its parameters learn as proxies do."""
PYTHON = "python:"
"""How a configuration names a loss that a program gave it."""
_OWN = "proxy_anchor"
# Called otherwise than loss(embeddings, labels) or abstract; broken by the indexing rules of torch >= 2.9 (histogram);
# or with memory outside its state, so that a resumed run would not repeat it (dynamic_soft_margin).
_LEFT_OUT = {
    *("base_metric_loss_function", "generic_pair", "self_supervised", "vicreg"),
    *("histogram", "dynamic_soft_margin"),
}


class LabeledLoss(nn.Module):
    """A metric-learning loss on embeddings and labels; its proxies, if it has any, are its parameters."""

    def __init__(self, name: "str | LossFunction", *, num_classes: int, embedding_dim: int) -> None:
        """
        Args:
            name: one of `labeled_losses()`, e.g. proxy_anchor; or a loss itself, which sees labels 0..num_classes - 1.
            num_classes: labels are 0..num_classes - 1.
            embedding_dim: width d of the embeddings.

        Raises:
            BadInput: unknown name (with the closest match).
        """
        super().__init__()
        if not isinstance(name, str):
            self.loss = name
            return
        if name.startswith(PYTHON):
            raise BadInput(f"--labeled-loss {name}: is of a Python program: continue with its `stml_semi.train(...)`")
        if name == _OWN:
            self.loss = ProxyAnchor(num_classes, embedding_dim)
            return
        losses = labeled_losses()
        if name not in losses:
            close = difflib.get_close_matches(name, losses, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(losses)}"
            raise BadInput(f"--labeled-loss {name}: no such loss; {hint}")
        sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
        accepted = _arguments(losses[name])
        fitting = {key: size for key, size in sizes.items() if key in accepted}
        self.loss = losses[name](**fitting)
        _register_tensors(self.loss)

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, "b"]) -> Float32[Tensor, ""]:
        """Float32 also under autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels)


class ProxyAnchor(nn.Module):
    """Proxy-Anchor: each class has a proxy, which pulls the images of its class and pushes all others, the hard ones
    most.

    The same numbers as pytorch-metric-learning's, whose count of the classes in a batch makes the host wait for a GPU
    three times a step.

    Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, equation 4.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: float = 0.1, alpha: float = 32) -> None:
        """
        Args:
            num_classes: labels are 0..num_classes - 1.
            embedding_dim: width d of the embeddings.
            margin: by which an image should be nearer to its proxy than 0, and further from the others (cosine).
            alpha: how much more the hard images count.
        """
        super().__init__()
        self.margin, self.alpha = margin, alpha
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """The loss of a batch; embeddings need not have unit length."""
        cosines = F.normalize(embeddings, dim=1) @ F.normalize(self.proxies, dim=1).T
        own = labels[:, None] == torch.arange(len(self.proxies), device=labels.device)
        pull = _log1p_sum_exp((self.alpha * (self.margin - cosines)).masked_fill(~own, -torch.inf))
        push = _log1p_sum_exp((self.alpha * (self.margin + cosines)).masked_fill(own, -torch.inf))
        return pull.sum() / own.any(0).sum() + push.mean()


def _log1p_sum_exp(terms: Float[Tensor, "b c"]) -> Float[Tensor, "c"]:
    """log(1 + sum of exp) over the batch."""
    return torch.cat([terms.new_zeros(1, terms.shape[1]), terms]).logsumexp(0)


def _register_tensors(loss: nn.Module) -> None:
    """Tensors that a loss of the library holds as plain attributes become buffers: they follow it to a device."""
    for module in loss.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                delattr(module, key)
                module.register_buffer(key, value, persistent=False)


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

"""The training step the published way, written from the paper's definitions: relations by a loop over rows, once for
each head; distances once for each term; a loop over state_dict for the teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stml_semi.config import TrainConfig

SIGMA = 3.0


def published_stml(f: Tensor, g: Tensor, target: Tensor, index: Tensor, config: TrainConfig) -> Tensor:
    """The STML loss, every term on its own: each computes the distances and relations that it needs."""
    topk = config.num_neighbors * config.num_views
    contrastive = torch.zeros((), device=f.device)
    for head in (f, g):
        affinity = published_affinity(target, index, sigma=SIGMA, topk=topk)
        d = _distances(head)
        terms = affinity * d**2 + (1 - affinity) * F.relu(config.delta - d) ** 2
        apart = 1 - torch.eye(len(d), device=d.device)
        contrastive = contrastive + (terms * apart).sum() / apart.sum()
    log_f, relations_g = F.log_softmax(-_distances(f), 1), F.softmax(-_distances(g).detach(), 1)
    return contrastive / 2 + F.kl_div(log_f, relations_g, reduction="batchmean")


def _distances(head: Tensor) -> Tensor:
    d = torch.cdist(head, head)
    return d / d.mean(1, keepdim=True)


@torch.no_grad()
def published_affinity(target: Tensor, index: Tensor, *, sigma: float, topk: int) -> Tensor:
    """Affinity W by a loop over rows."""
    t = F.normalize(target)
    pairwise = torch.exp(-(torch.cdist(t, t) ** 2) / sigma)
    ranking = torch.where(index[:, None] == index[None, :], 1.0, pairwise)
    nearest = ranking.topk(topk).indices
    near = torch.zeros_like(pairwise).scatter_(1, nearest, 1.0)
    mutual = near * near.T
    overlap = torch.zeros_like(pairwise)
    for i in range(len(t)):
        own = mutual[i].nonzero().flatten()  # R(i), and how many of its members each R(j) has.
        overlap[i] = mutual[i] * mutual[:, own].sum(1) / len(own)
    expanded = overlap[nearest[:, : round(topk / 2)]].mean(1)
    return (pairwise + (expanded + expanded.T) / 2) / 2


@torch.no_grad()
def published_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    own = teacher.state_dict()
    for name, value in student.state_dict().items():
        own[name].copy_(momentum * own[name] + (1 - momentum) * value)

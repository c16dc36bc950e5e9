"""Is the run well? Loss terms that are not finite, the spread of embeddings and affinities, collapse."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from stml_semi.losses.distances import normalize
from stml_semi.runtime.errors import RunFailed
from stml_semi.training.objective import Terms

AFFINITY_BINS = 20
_QUANTILES = {"affinity_p50": 0.5, "affinity_p90": 0.9, "affinity_p99": 0.99}


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalized singular values: how many directions the embeddings use, 1 to min(N, d).

    Source: Garrido et al., "RankMe", ICML 2023, equation 1; here of unit-length embeddings around their mean.

    Args:
        embeddings: (N, d).
    """
    x = normalize(embeddings)
    # The singular values of an (N, d) matrix are the roots of the eigenvalues of its smaller Gram matrix.
    x = (x - x.mean(0)).cpu().double()
    values = torch.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x).clamp_min(0).sqrt()
    if values.sum() <= 1e-7:
        return 1.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine of two different rows of (N, d)."""
    x = normalize(embeddings)
    rows = len(x)
    return float((x.sum(0).square().sum() - x.square().sum()) / max(rows * (rows - 1), 1))


def spread(f: Tensor, affinity: Tensor | None) -> dict[str, float]:
    """What metrics.jsonl says of a step's embeddings (N, d) and affinities (M, M), the diagonal left out."""
    line = {"effective_rank": effective_rank(f), "mean_similarity": mean_similarity(f)}
    if affinity is not None:
        order = affinity[~torch.eye(len(affinity), dtype=torch.bool, device=affinity.device)].sort().values
        line |= {name: float(order[int(q * (len(order) - 1))]) for name, q in _QUANTILES.items()}
    return line


def affinity_histogram(affinity: Tensor | None) -> dict[str, list[int]]:
    """What metrics.jsonl says of the distribution of a step's affinities (M, M): pairs in 20 equal parts of 0..1.

    The diagonal is left out. Nothing without affinities.
    """
    if affinity is None:
        return {}
    pairs = affinity[~torch.eye(len(affinity), dtype=torch.bool, device=affinity.device)]
    return {"affinity_histogram": torch.histc(pairs, AFFINITY_BINS, 0, 1).int().tolist()}


def agreement(affinity: Tensor, image_index: Tensor, labels: Tensor) -> dict[str, float]:
    """How far affinities are right, where somebody knows: what metrics.jsonl says of pairs of different images.

    Args:
        affinity: (M, M); above 0.5 two images are taken for the same class.
        image_index: (M,) which image a row shows.
        labels: (N,) class of every image, on the CPU.

    Returns:
        affinity_precision: share of one class among the pairs that are taken for it; affinity_recall: share of the
        pairs of one class that are. What has no pairs is left out.
    """
    index = image_index.cpu()
    classes = labels[index]
    pair = index[:, None] != index
    same = (classes[:, None] == classes) & pair
    held = (affinity > 0.5).cpu() & pair
    right = int((held & same).sum())
    line = {}
    if held.any():
        line["affinity_precision"] = right / int(held.sum())
    if same.any():
        line["affinity_recall"] = right / int(same.sum())
    return line


def is_collapsed(line: dict[str, float]) -> bool:
    """Whether embeddings have lost what tells images apart: (nearly) one point, or one line."""
    return line["effective_rank"] < 2 or line["mean_similarity"] > 0.999


def collapse(step: int, line: dict[str, float]) -> RunFailed:
    """The error for a run whose embeddings have collapsed."""
    return RunFailed.on_all(
        f"the embeddings have collapsed at step {step} (effective rank {line['effective_rank']:.1f}, mean similarity "
        f"{line['mean_similarity']:.3f}): lower --learning-rate or --unlabeled-weight"
    )


class FiniteWatch:
    """Remembers, on the device and without waiting for it, the first step at which each term was not finite."""

    NAMES = ("labeled_loss", "relaxed_contrastive", "self_distillation", "surrogate")

    def __init__(self, device: torch.device) -> None:
        self.first = torch.full((len(self.NAMES),), -1, device=device)

    def check(self, terms: Terms, step: int) -> None:
        """To be called at every step."""
        broken = ~torch.stack([getattr(terms, name).detach().float() for name in self.NAMES]).isfinite()
        self.first = torch.where(broken & (self.first < 0), step, self.first)

    def broken(self) -> dict[str, int]:
        """Term -> step, of the terms that are not finite. Waits for the device: for logging steps."""
        return {name: step for name, step in zip(self.NAMES, self.first.tolist(), strict=True) if step >= 0}


def report_non_finite(broken: dict[str, int], images: Iterable[str], file: Path | None) -> RunFailed:
    """The error for terms that are not finite; the images of the first bad step are listed in `file`.

    Args:
        broken: from `FiniteWatch.broken`.
        images: what the batch of the first bad step showed.
        file: where to write the list; None on processes that do not write.
    """
    step = min(broken.values())
    terms = [name for name, at in broken.items() if at == step]
    named = [name for name in terms if name != "surrogate"] or ["the gradient of the loss"]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"step": step, "terms": named, "images": list(images)}
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return RunFailed.on_all(
        f"{', '.join(named)} is not finite from step {step} on; the batch's images and the state are in non_finite/ of "
        f"the run folder: inspect them, lower --learning-rate, or train with --mixed-precision no"
    )

"""What people would do instead, each as a generator of steps: the model may be looked at after any of them.

All train the same model with the same optimizer and views as our runs. What differs is what they learn from. SimGCD and
contrastive mean-shift are written from their papers.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers, samplers, trainers
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.utils.data import Dataset
from worlds import World

from stml_semi.config import TrainConfig
from stml_semi.losses.proxy import ProxyAnchor
from stml_semi.models.backbone import open_backbone
from stml_semi.models.build import build_embedder
from stml_semi.models.embedder import Embedder
from stml_semi.training.optimizer import make_optimizer

_LABELED, _UNLABELED = 64, 120
_LABELS_ALONE = 1e-4
"""Learning rate, in both worlds."""


class Progress(NamedTuple):
    """After a step."""

    step: int
    embeds: dict[str, Callable[[Tensor], Tensor]]
    """Pixels -> embeddings: what could be exported."""


Method = Callable[[World, int, int, float], Iterator[Progress]]
"""(world, seed, steps, learning rate where unlabeled images take part) -> progress after every step."""


def new_model(world: World, seed: int) -> Embedder:
    """The model of our own runs: pooling, and a head of 512."""
    torch.manual_seed(seed)
    return build_embedder(_config(world, 1e-4), open_backbone(world.backbone)).train()


def _config(world: World, rate: float) -> TrainConfig:
    return TrainConfig(labeled="x", backbone=world.backbone, learning_rate=rate)


def _optimizer(world: World, model: Embedder, rate: float, extra: list[nn.Parameter]) -> torch.optim.Optimizer:
    return make_optimizer(_config(world, rate), model, extra)


def by_class(labels: Tensor, classes: int, each: int, seed: int, step: int) -> np.ndarray:
    """Rows of a batch: some classes, some images of each."""
    rng = np.random.default_rng([seed, step])
    rows = [np.flatnonzero(labels.numpy() == c) for c in rng.permutation(np.unique(labels))[:classes]]
    return np.concatenate([rng.choice(own, each, replace=len(own) < each) for own in rows])


def _heads(model: Embedder) -> dict[str, Callable[[Tensor], Tensor]]:
    return {"f": lambda pixels: model(pixels).f, "features": model.features}


# ------------------------------------------------------------------ labels only


def pml(world: World, seed: int, steps: int, rate: float) -> Iterator[Progress]:
    """Proxy-Anchor by pytorch-metric-learning's own trainer."""
    loss = losses.ProxyAnchorLoss(len(world.labels.unique()), 512)
    yield from _by_trainer(world, seed, steps, loss, None)


def triplet(world: World, seed: int, steps: int, rate: float) -> Iterator[Progress]:
    """Batch-hard triplets, the usual loss of sentence-transformers, by pytorch-metric-learning's trainer."""
    cosine = distances.CosineSimilarity()
    loss = losses.TripletMarginLoss(margin=0.2, distance=cosine, reducer=reducers.AvgNonZeroReducer())
    yield from _by_trainer(world, seed, steps, loss, miners.BatchHardMiner(distance=cosine))


class _Views(Dataset[tuple[Tensor, int]]):
    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed, self.drawn = world, seed, 0

    def __len__(self) -> int:
        return len(self.world.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        self.drawn += 1
        view = self.world.views(self.world.labeled, np.asarray([row]), seed=self.seed, step=self.drawn)
        return view[0], int(self.world.labels[row])


class _Embedded(nn.Module):
    def __init__(self, model: Embedder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).f


def _by_trainer(world: World, seed: int, steps: int, loss: nn.Module, miner: object | None) -> Iterator[Progress]:
    model = new_model(world, seed)
    optimizers = {"trunk_optimizer": _optimizer(world, model, _LABELS_ALONE, [])}
    if parameters := list(loss.parameters()):
        optimizers["metric_loss_optimizer"] = torch.optim.AdamW(parameters, lr=100 * _LABELS_ALONE, weight_decay=0)
    sampler = samplers.MPerClassSampler(world.labels, 4, _LABELED, _LABELED * 50)
    for done in range(50, steps + 1, 50):
        trainer = trainers.MetricLossOnly(
            models={"trunk": _Embedded(model), "embedder": nn.Identity()},
            optimizers=optimizers,
            batch_size=_LABELED,
            loss_funcs={"metric_loss": loss},
            mining_funcs={} if miner is None else {"tuple_miner": miner},
            dataset=_Views(world, seed * 1000 + done),
            sampler=sampler,
            dataloader_num_workers=0,
            iterations_per_epoch=50,
            data_device=torch.device("cpu"),
        )
        trainer.train(num_epochs=1)
        yield Progress(done, _heads(model))


# ------------------------------------------------------------------ pseudo labels


def pseudo(world: World, seed: int, steps: int, rate: float, rounds: int = 1) -> Iterator[Progress]:
    """k-means on the embeddings of a model trained on labels, then Proxy-Anchor on labels and clusters: the core of
    SLADE (Duan et al., CVPR 2021). It is told the true number of classes."""
    last = None
    for progress in proxy_anchor(world, world.labeled, world.labels, seed, 500, _LABELS_ALONE, _LABELED):
        last = progress
    for number in range(rounds):
        assert last is not None
        embedded = embed_raw(world, world.unlabeled, last.embeds["f"])
        clusters = KMeans(world.num_unknown, n_init="auto", random_state=seed).fit_predict(embedded.numpy())
        labels = torch.cat([world.labels, torch.from_numpy(clusters).long() + int(world.labels.max()) + 1])
        pictures = [*world.labeled, *world.unlabeled]
        for progress in proxy_anchor(world, pictures, labels, seed, steps, rate, _UNLABELED):
            last = progress
            if number == rounds - 1:
                yield progress


def pseudo_twice(world: World, seed: int, steps: int, rate: float) -> Iterator[Progress]:
    """The same in two rounds: clusters of what clusters have taught."""
    yield from pseudo(world, seed, steps, rate, rounds=2)


def proxy_anchor(
    world: World,
    pictures: list[Tensor],
    labels: Tensor,
    seed: int,
    steps: int,
    rate: float,
    batch: int,
    model: Embedder | None = None,
) -> Iterator[Progress]:
    """Proxy-Anchor on images with labels, four of a class."""
    model = new_model(world, seed) if model is None else model
    loss = ProxyAnchor(int(labels.max()) + 1, 512)
    optimizer = _optimizer(world, model, rate, list(loss.parameters()))
    for step in range(steps):
        rows = by_class(labels, batch // 4, 4, seed, step)
        pixels = world.views(pictures, rows, seed=seed, step=step)
        _take(optimizer, loss(model(pixels).f, labels[rows]))
        yield Progress(step + 1, _heads(model))


@torch.no_grad()
def embed_raw(world: World, pictures: list[Tensor], embed: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, d) unit vectors of images as they are."""
    whole = [F.interpolate(one[None].float(), world.size, mode="bilinear").round().byte() for one in pictures]
    parts = [F.normalize(embed(part), dim=1) for part in torch.cat(whole).split(256)]
    return torch.cat(parts)


def _take(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# ------------------------------------------------------------------ two stages


def simclr(world: World, seed: int, steps: int, rate: float) -> Iterator[Progress]:
    """SimCLR (Chen et al., ICML 2020) on all images for half of the steps, then Proxy-Anchor on labels: what lightly
    is for."""
    model = new_model(world, seed)
    projection = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    optimizer = _optimizer(world, model, rate, list(projection.parameters()))
    for group in optimizer.param_groups[-1:]:
        group["lr"] = rate  # A head is no proxy.
    pictures = [*world.labeled, *world.unlabeled]
    for step in range(steps // 2):
        rows = np.random.default_rng([seed, step]).permutation(len(pictures))[:_UNLABELED]
        views = torch.cat([world.views(pictures, rows, seed=seed, step=step, view=view) for view in (0, 1)])
        _take(optimizer, info_nce(projection(model(views).f), 0.2))
        yield Progress(step + 1, _heads(model))
    for progress in proxy_anchor(
        world, world.labeled, world.labels, seed, steps - steps // 2, _LABELS_ALONE, _LABELED, model
    ):
        yield progress._replace(step=steps // 2 + progress.step)


def info_nce(projected: Tensor, temperature: float) -> Tensor:
    """Rows i and i + n are views of one image."""
    unit = F.normalize(projected, dim=1)
    scores = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(unit)).roll(len(unit) // 2)
    return F.cross_entropy(scores, partner)


def supervised_contrast(projected: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Khosla et al., NeurIPS 2020."""
    return losses.SupConLoss(temperature)(projected, labels)


# ------------------------------------------------------------------ generalized category discovery


def _mixed_batch(world: World, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Two views of labeled and unlabeled images, labeled first; half of each, as these methods draw."""
    rng = np.random.default_rng([seed, step])
    ours = rng.permutation(len(world.labels))[: _LABELED // 2]
    others = rng.permutation(len(world.unlabeled))[: _UNLABELED - _LABELED // 2]
    parts = [
        torch.cat(
            [
                world.views(world.labeled, ours, seed=seed, step=step, view=view),
                world.views(world.unlabeled, others, seed=seed + 1, step=step, view=view),
            ]
        )
        for view in (0, 1)
    ]
    return torch.cat(parts), world.labels[ours]


def simgcd(world: World, seed: int, steps: int, rate: float) -> Iterator[Progress]:
    """Wen et al., "Parametric Classification for Generalized Category Discovery: A Baseline Study", ICCV 2023, with its
    weights (0.35 for labels, 2 for the entropy of the mean) and temperatures."""
    model = new_model(world, seed)
    width = model.head_f.in_features
    num_known = len(world.labels.unique())
    prototypes = nn.Parameter(F.normalize(torch.randn(num_known + world.num_unknown, width), dim=1))
    projection = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 256))
    optimizer = _optimizer(world, model, rate, [])
    heads = torch.optim.AdamW([prototypes, *projection.parameters()], lr=10 * rate, weight_decay=0)
    for step in range(steps):
        pixels, labels = _mixed_batch(world, seed, step)
        features = model.features(pixels)
        logits = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T / 0.1
        half = len(pixels) // 2
        known = torch.cat([torch.arange(len(labels)), half + torch.arange(len(labels))])
        twice = labels.repeat(2)
        sharp = 0.07 + (0.04 - 0.07) * min(1.0, step / max(1, steps // 5))
        target = F.softmax(logits.detach() * (0.1 / sharp), dim=1).roll(half, 0)
        learned = -(target * F.log_softmax(logits, dim=1)).sum(1).mean()
        mean = F.softmax(logits, dim=1).mean(0)
        learned = learned + 2.0 * (mean * mean.clamp_min(1e-12).log()).sum()
        projected = projection(features)
        loss = 0.65 * (learned + info_nce(projected, 1.0))
        loss = loss + 0.35 * F.cross_entropy(logits[known], twice)
        loss = loss + 0.35 * supervised_contrast(projected[known], twice, 0.07)
        heads.zero_grad()
        _take(optimizer, loss)
        heads.step()
        yield Progress(step + 1, {"features": model.features, "projected": lambda x: projection(model.features(x))})


def mean_shift(world: World, seed: int, steps: int, rate: float) -> Iterator[Progress]:
    """Choi, Kang and Cho, "Contrastive Mean-Shift Learning for Generalized Category Discovery", CVPR 2024: an embedding
    moves halfway to the mean of its 8 neighbors before it is contrasted; neighbors are found anew every 200 steps."""
    model = new_model(world, seed)
    optimizer = _optimizer(world, model, rate, [])
    pictures = [*world.labeled, *world.unlabeled]
    memory = torch.empty(0)

    def shifted(unit: Tensor) -> Tensor:
        nearest = (unit.detach() @ memory.T).topk(8, dim=1).indices
        return F.normalize(0.5 * unit + 0.5 * F.normalize(memory[nearest].mean(1), dim=1), dim=1)

    for step in range(steps):
        if step % 200 == 0:
            memory = embed_raw(world, pictures, lambda pixels: model(pixels).f)
        pixels, labels = _mixed_batch(world, seed, step)
        unit = F.normalize(model(pixels).f, dim=1)
        half = len(pixels) // 2
        known = torch.cat([torch.arange(len(labels)), half + torch.arange(len(labels))])
        loss = 0.65 * info_nce(shifted(unit), 0.25)
        loss = loss + 0.35 * supervised_contrast(unit[known], labels.repeat(2), 0.07)
        _take(optimizer, loss)
        yield Progress(step + 1, _heads(model))


METHODS: dict[str, tuple[str, Method]] = {
    "pml": ("Proxy-Anchor, pytorch-metric-learning's trainer", pml),
    "triplet": ("batch-hard triplets", triplet),
    "simclr": ("SimCLR on all, then Proxy-Anchor", simclr),
    "pseudo": ("pseudo labels by k-means, one round", pseudo),
    "pseudo2": ("pseudo labels by k-means, two rounds", pseudo_twice),
    "simgcd": ("SimGCD", simgcd),
    "meanshift": ("contrastive mean-shift", mean_shift),
}

"""Where the time of a training step goes, against the bare passes and against the step built the published way.

    python benchmarks/step.py                                            ResNet-18 at 64 px: two minutes on a core
    python benchmarks/step.py --model vit-small --size 224 --device cuda --bf16 --compile

Everything is measured in one run, the ways taking turns; a ratio is the median of the ratios of each turn. Times are
CPU time of one thread (wall time with --threads above 1), on a GPU the time between events on its stream: ratios carry
over to other machines, seconds do not.

The published way: relations by a Python loop over rows, once for each head; distances once for each term; a loop over
state_dict for the teacher; an optimizer that loops over parameters. Written from the paper's definitions; it is checked
that both ways compute the same gradients.
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import Steps, ViewSettings
from stml_semi.data.batches.plan import LabeledPlan, UnlabeledPlan
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.views import Normalization
from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import stml_loss
from stml_semi.models.embedder import Embedder, resolve_pooling
from stml_semi.models.teacher import Teacher
from stml_semi.training.objective import Labeled, Objective, Unlabeled
from stml_semi.training.optimizer import make_optimizer

STUDENT, TEACHER, LOSSES, BACKWARD, OPTIMIZER, EMA = PARTS = (
    "student forward",
    "teacher forward",
    "relations, losses, balance",
    "student backward",
    "optimizer",
    "EMA of the teacher",
)
BARE, OURS, PUBLISHED, OTHER = "bare passes", "this project", "published way", "other precision"
SIGMA = 3.0  # As published.
NUM_CLASSES = 100  # Proxies of the labeled term, as many as CUB has.
HEAD_F, HEAD_G = 512, 1024

Laps = dict[str, float]


class Setting(NamedTuple):
    model: str
    size: int
    labeled: int
    unlabeled: int
    device: str
    bf16: bool
    compile: bool
    repeats: int
    threads: int


class Clock:
    """Laps of a step."""

    def __init__(self, device: str, threads: int) -> None:
        self.on_gpu = device.startswith("cuda")
        self.now = time.process_time if threads == 1 else time.perf_counter
        self.names: list[str] = []
        self.marks: list[Any] = [self._mark()]

    def lap(self, name: str) -> None:
        """Ends a lap. On a GPU this waits for nothing: the stream keeps the time."""
        self.names.append(name)
        self.marks.append(self._mark())

    def seconds(self) -> Laps:
        if self.on_gpu:
            torch.cuda.synchronize()
            lengths = [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        else:
            lengths = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return dict(zip(self.names, lengths, strict=True))

    def _mark(self) -> Any:
        if not self.on_gpu:
            return self.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def in_turns(ways: dict[str, Callable[[Clock], None]], setting: Setting, repeats: int) -> dict[str, list[Laps]]:
    """Laps of every way, `repeats` times, way after way: what slows the machine down slows them all."""
    laps: dict[str, list[Laps]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    for turn in range(repeats + 1):
        shuffle(order)  # What one way leaves in caches and allocator must not always be found by the same other way.
        for name in order:
            clock = Clock(setting.device, setting.threads)
            ways[name](clock)
            seconds = clock.seconds()
            if turn:  # Libraries and caches warm up in the first turn.
                laps[name].append(seconds)
    return laps


def totals(laps: Sequence[Laps], parts: Sequence[str] | None = None) -> list[float]:
    return [sum(lap[part] for part in parts or lap) for lap in laps]


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


# ---------------------------------------------------------------------------- the step


def random_embedder(model: str, size: int, *, patch: int = 16, micro_batch_size: int | None = None) -> Embedder:
    """An embedder whose backbone has random weights (resnet18, resnet50, vit-small), or is opened by name."""
    import transformers as tr

    torch.manual_seed(0)
    if model == "resnet18":
        shape: dict[str, Any] = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
        backbone: Any = tr.ResNetModel(tr.ResNetConfig(**shape, layer_type="basic"))
    elif model == "resnet50":
        backbone = tr.ResNetModel(tr.ResNetConfig())
    elif model == "vit-small":
        shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
        config = tr.ViTConfig(**shape, image_size=size, patch_size=patch)
        backbone = tr.ViTModel(config, add_pooling_layer=False)
    else:
        from stml_semi.models.backbone import open_backbone

        backbone = open_backbone(model, image_size=size, flag="--model").model
    return Embedder(
        backbone,
        resolve_pooling("auto", backbone, (size, size)),
        Normalization(torch.full((3,), 0.45), torch.full((3,), 0.25)),
        embedding_dim=HEAD_F,
        auxiliary_dim=HEAD_G,
        micro_batch_size=micro_batch_size,
    )


class Rig:
    """Model, teacher, objective and optimizer of a run, and one batch of random pixels."""

    def __init__(self, setting: Setting, *, published: bool) -> None:
        config = TrainConfig(
            labeled="labeled", unlabeled="unlabeled", unlabeled_batch_size=setting.unlabeled, embedding_dim=HEAD_F
        )
        self.config, self.setting, self.published = config, setting, published
        self.embedder = random_embedder(setting.model, setting.size).to(setting.device).train()
        self.teacher = Teacher(self.embedder, momentum=config.momentum)
        self.objective = Objective(config, num_classes=NUM_CLASSES).to(setting.device)
        self.proxies = list(self.objective.parameters())
        self.optimizer = make_optimizer(config, self.embedder, self.proxies)
        if published:
            groups = [
                {key: group[key] for key in ("params", "lr", "weight_decay")} for group in self.optimizer.param_groups
            ]
            self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
        elif setting.compile:
            self.embedder.compile()
            self.teacher.model.compile()
        generator = torch.Generator().manual_seed(0)
        rows, size = setting.labeled + config.num_views * setting.unlabeled, setting.size
        pixels = torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)
        self.pixels = pixels.to(setting.device)
        self.labels = (torch.arange(setting.labeled) // config.images_per_class).to(setting.device)
        self.index = torch.arange(setting.unlabeled, device=setting.device).repeat(config.num_views)
        # What the bare backward pass starts from: any numbers will do.
        self.upstream = [torch.ones(rows, width, device=setting.device) / rows for width in (HEAD_F, HEAD_G)]

    def bare(self, clock: Clock) -> None:
        """Student forward and backward, teacher forward: what no way of training could leave out."""
        f, g, _ = self._forward(clock, self.setting.bf16)
        torch.autograd.backward([f, g], self.upstream)
        clock.lap(BACKWARD)
        self.embedder.zero_grad(set_to_none=True)

    def step(self, clock: Clock, *, bf16: bool | None = None) -> None:
        """One training step, as in the trainer."""
        f, g, target = self._forward(clock, self.setting.bf16 if bf16 is None else bf16)
        losses = self._published_losses if self.published else self._losses
        backward = losses(f, g, target)
        clock.lap(LOSSES)
        backward()
        clock.lap(BACKWARD)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.lap(OPTIMIZER)
        if self.published:
            published_ema(self.teacher.model, self.embedder, self.config.momentum)
        else:
            self.teacher.update(self.embedder)
        clock.lap(EMA)

    def _forward(self, clock: Clock, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(torch.device(self.setting.device).type, torch.bfloat16, enabled=bf16):
            student = self.embedder(self.pixels)
            f, g = student.f.float(), student.g.float()
            clock.lap(STUDENT)
            target = self.teacher(self.pixels[self.setting.labeled :]).g.float()
            clock.lap(TEACHER)
        return f, g, target

    def _losses(self, f: Tensor, g: Tensor, target: Tensor) -> Callable[[], None]:
        labeled = self.setting.labeled
        terms = self.objective(
            Labeled(f[:labeled], self.labels), Unlabeled(f[labeled:], g[labeled:], target, self.index, SIGMA)
        )
        return terms.surrogate.backward

    def _published_losses(self, f: Tensor, g: Tensor, target: Tensor) -> Callable[[], None]:
        """Plain sum of the terms. Differentiated down to the embeddings first, only to tell the parts apart."""
        config, labeled = self.config, self.setting.labeled
        assert self.objective.labeled_loss is not None
        value = self.objective.labeled_loss(f[:labeled], self.labels) + published_stml(
            f[labeled:], g[labeled:], target, self.index, config
        )
        upstream = torch.autograd.grad(value, [f, g, *self.proxies])
        for proxy, gradient in zip(self.proxies, upstream[2:], strict=True):
            proxy.grad = gradient
        return lambda: torch.autograd.backward([f, g], upstream[:2])


# ---------------------------------------------------------------------------- the published way


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


# ---------------------------------------------------------------------------- what is measured


def anatomy(setting: Setting) -> dict[str, list[Laps]]:
    """The step, the bare passes, the published step, and the step in the other precision."""
    ours, published = Rig(setting, published=False), Rig(setting, published=True)
    other = Rig(setting, published=False)
    ways = {
        BARE: ours.bare,
        OURS: ours.step,
        PUBLISHED: published.step,
        OTHER: lambda clock: other.step(clock, bf16=not setting.bf16),
    }
    return in_turns(ways, setting, setting.repeats)


def loss_alone(rows: int, setting: Setting) -> dict[str, list[Laps]]:
    """Relations, STML loss and its gradient at the embeddings; `rows` are two views of half as many images."""
    config = TrainConfig(unlabeled="unlabeled")
    generator = torch.Generator().manual_seed(rows)
    f, g, target = (
        torch.randn(rows, width, generator=generator).to(setting.device) for width in (HEAD_F, HEAD_G, HEAD_G)
    )
    index = torch.arange(rows // config.num_views, device=setting.device).repeat(config.num_views)
    heads = (f.requires_grad_(), g.requires_grad_())

    def ours() -> Tensor:
        topk = config.num_neighbors * config.num_views
        relations = contextual_affinity(target, index, sigma=SIGMA, topk=topk)
        return stml_loss(f, g, relations.affinity, delta=config.delta).total

    def published() -> Tensor:
        return published_stml(f, g, target, index, config)

    for a, b in zip(torch.autograd.grad(ours(), heads), torch.autograd.grad(published(), heads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))

    def timed(loss: Callable[[], Tensor]) -> Callable[[Clock], None]:
        def way(clock: Clock) -> None:
            torch.autograd.grad(loss(), heads)
            clock.lap("all")

        return way

    return in_turns({OURS: timed(ours), PUBLISHED: timed(published)}, setting, 10 * setting.repeats)


def ema_alone(setting: Setting) -> dict[str, list[Laps]]:
    """The teacher's update for a ResNet-50 with both heads, beside one `lerp_` over as many numbers in one tensor."""
    student = random_embedder("resnet50", 64).to(setting.device)
    teacher, other = Teacher(student, momentum=0.999), copy.deepcopy(student)
    count = sum(value.numel() for value in student.state_dict().values())
    flat, flat_student = torch.zeros(count, device=setting.device), torch.ones(count, device=setting.device)
    ways: dict[str, Callable[[], Any]] = {
        "flat": lambda: flat.lerp_(flat_student, 0.001),
        OURS: lambda: teacher.update(student),
        PUBLISHED: lambda: published_ema(other, student, 0.999),
    }

    def timed(update: Callable[[], Any]) -> Callable[[Clock], None]:
        def way(clock: Clock) -> None:
            update()
            clock.lap("all")

        return way

    return in_turns({name: timed(update) for name, update in ways.items()}, setting, 5 * setting.repeats)


def data_seconds(setting: Setting) -> float:
    """CPU time of one decoding process for one batch, of the embedded pictures (small PNG files)."""
    config = TrainConfig(unlabeled_batch_size=setting.unlabeled)
    labeled = open_source("kanji", flag="--labeled", labels="required")
    unlabeled = open_source("kanji-more", flag="--unlabeled", labels="ignored")
    assert labeled.labels is not None
    by_class = [np.flatnonzero(labeled.labels == c) for c in range(len(labeled.classes))]
    neighbors = np.random.default_rng(0).integers(0, len(unlabeled), (len(unlabeled), config.num_neighbors - 1))
    classes = setting.labeled // config.images_per_class
    steps = Steps(
        ViewSettings("paper", (setting.size, setting.size), config.num_views, 0),
        labeled=(labeled, LabeledPlan(by_class, classes, config.images_per_class)),
        unlabeled=(
            unlabeled,
            UnlabeledPlan(np.arange(len(unlabeled)), neighbors, config.queries_per_batch, config.num_neighbors),
        ),
        labeled_share=slice(0, setting.labeled),
        unlabeled_share=slice(0, setting.unlabeled),
    )
    seconds = []
    for step in range(setting.repeats + 1):
        start = time.process_time()
        steps[step]
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


# ---------------------------------------------------------------------------- the report


def verdict(what: str, value: float, target: float, *, at_least: bool = False) -> None:
    met = value >= target if at_least else value <= target
    print(f"{what:62} {value:7.3f}   target {'>=' if at_least else '<='} {target:<5} {'met' if met else 'MISSED'}")


def report(setting: Setting) -> None:
    laps = anatomy(setting)
    bare, ours, published = totals(laps[BARE]), totals(laps[OURS]), totals(laps[PUBLISHED])
    extra = (LOSSES, OPTIMIZER, EMA)
    print(
        f"whole step / bare passes: this project {ratio(ours, bare):.3f}, published way {ratio(published, bare):.3f}\n"
    )
    print(f"{'part':28} {'ms':>9} {'of bare':>8}   {'published ms':>12} {'of bare':>8}")
    for part in PARTS:
        columns = (totals(laps[way], [part]) for way in (OURS, PUBLISHED))
        (ms, share), (old_ms, old_share) = ((1e3 * statistics.median(c), ratio(c, bare)) for c in columns)
        print(f"{part:28} {ms:9.2f} {share:8.2%}   {old_ms:12.2f} {old_share:8.2%}")
    whole, old_whole = (1e3 * statistics.median(x) for x in (ours, published))
    print(f"{'whole step':28} {whole:9.2f} {ratio(ours, bare):8.2%}   {old_whole:12.2f} {ratio(published, bare):8.2%}")
    print(f"{'bare passes':28} {1e3 * statistics.median(bare):9.2f}")
    decoding = data_seconds(setting)
    print(f"{'data: decode and augment':28} {1e3 * decoding:9.2f}   in the decoding processes, beside the step\n")

    share = ratio(totals(laps[OURS], extra), bare)
    verdict("losses + EMA + optimizer / bare passes", share, 0.02)
    print(f"{'   the published way':62} {ratio(totals(laps[PUBLISHED], extra), bare):7.3f}")
    other = totals(laps[OTHER])
    bf16, float32 = (ours, other) if setting.bf16 else (other, ours)
    if setting.device == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        print(f"{'bf16 step / float32 step':62} {ratio(bf16, float32):7.3f}   no target: no avx512_bf16 here")
    else:
        verdict("bf16 step / float32 step", ratio(bf16, float32), 0.65)
    for rows in (120, 240):
        alone = {name: totals(each) for name, each in loss_alone(rows, setting).items()}
        speed = ratio(alone[PUBLISHED], alone[OURS])
        ms = 1e3 * statistics.median(alone[OURS])
        verdict(f"STML loss fwd + bwd, N = {rows} ({ms:.2f} ms): times faster", speed, 2.5, at_least=True)
    alone = {name: totals(each) for name, each in ema_alone(setting).items()}
    ms = 1e3 * statistics.median(alone["flat"])
    verdict(f"EMA of a ResNet-50 / one flat lerp_ ({ms:.1f} ms)", ratio(alone[OURS], alone["flat"]), 1.25)
    print(f"{'   the published way':62} {ratio(alone[PUBLISHED], alone['flat']):7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="resnet18", help="resnet18, resnet50, vit-small (random weights), or what --backbone takes"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--labeled", type=int, default=64, help="labeled images of a step, a multiple of 4")
    parser.add_argument("--unlabeled", type=int, default=60, help="unlabeled images, two views each, a multiple of 5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="measure the step in bf16 (float32 is the other precision)")
    parser.add_argument("--compile", action="store_true", help="compile student and teacher of this project's step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; more than one measures wall time")
    setting = Setting(**vars(parser.parse_args()))
    torch.set_num_threads(setting.threads)
    start = time.perf_counter()
    views = f"{setting.labeled} labeled + 2 x {setting.unlabeled} unlabeled images"
    precision = "bf16" if setting.bf16 else "float32"
    print(f"{setting.model} at {setting.size} px, {views}, {precision}, {setting.device}, torch {torch.__version__}\n")
    report(setting)
    print(f"\nall in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

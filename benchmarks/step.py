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
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from published_way import SIGMA, published_ema, published_stml
from rig import (
    BARE,
    EMA,
    HEAD_F,
    HEAD_G,
    LOSSES,
    OPTIMIZER,
    OTHER,
    OURS,
    PARTS,
    PUBLISHED,
    Rig,
    random_embedder,
)
from timing import Clock, Laps, Setting, in_turns, ratio, totals
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import Steps, ViewSettings
from stml_semi.data.batches.plan import LabeledPlan, UnlabeledPlan
from stml_semi.data.sources.open_source import open_source
from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import stml_loss
from stml_semi.models.teacher import Teacher

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
    """CPU time of one decoding process for one batch, of the embedded images (small PNG files)."""
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
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
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

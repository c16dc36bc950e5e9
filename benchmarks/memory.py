"""Peak memory and time of a training step against --micro-batch-size, for a ViT.

    python benchmarks/memory.py                        ViT-S/16 at 64 px, 240 images: two minutes on a core
    python benchmarks/memory.py --patch 8              four times as many tokens, 6 GB

Memory is what a step needs beyond model, teacher and optimizer state. Each size has a process of its own, since what an
earlier step left behind would hide what a later one needs. Times are paired: all sizes take turns in one process, and a
ratio is the median of the ratios of each turn. Seconds as in step.py.
"""

import argparse
import resource
import statistics
import sys
import time
from typing import Any, NamedTuple

import psutil
import torch
from neighbors import Measured, in_a_fresh_process
from step import Clock, random_embedder
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.losses.relations import contextual_affinity
from stml_semi.losses.stml import stml_loss
from stml_semi.models.embedder import Embedder
from stml_semi.models.teacher import Teacher
from stml_semi.training.optimizer import make_optimizer

SIZES: tuple[int | None, ...] = (None, 64, 32, 16, 8)


class Setting(NamedTuple):
    model: str
    size: int
    patch: int
    batch: int
    device: str
    bf16: bool
    repeats: int
    threads: int


class Rig:
    """What an unsupervised step needs."""

    def __init__(self, setting: Setting, micro_batch_size: int | None) -> None:
        torch.set_num_threads(setting.threads)
        self.setting, self.config = setting, TrainConfig(unlabeled="unlabeled")
        self.embedder: Embedder = random_embedder(setting.model, setting.size, patch=setting.patch)
        self.embedder.to(setting.device).train()
        self.teacher = Teacher(self.embedder, momentum=self.config.momentum)
        self.optimizer = make_optimizer(self.config, self.embedder, [])
        self.split(micro_batch_size)
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch, 3, setting.size, setting.size)
        self.pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(setting.device)

    def split(self, micro_batch_size: int | None) -> None:
        models: tuple[Any, Any] = (self.embedder, self.teacher.model)
        for model in models:
            model.micro_batch_size = micro_batch_size

    def step(self, pixels: Tensor) -> None:
        config = self.config
        index = torch.arange(len(pixels) // config.num_views, device=pixels.device).repeat(config.num_views)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.setting.bf16):
            student, target = self.embedder(pixels), self.teacher(pixels)
        topk = min(config.num_neighbors * config.num_views, len(pixels))
        relations = contextual_affinity(target.g, index, sigma=3.0, topk=topk)
        stml_loss(student.f.float(), student.g.float(), relations.affinity, delta=config.delta).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.update(self.embedder)


def peak(setting: Setting, micro_batch_size: int | None) -> Measured:
    """Peak memory of one step, for a process of its own."""
    rig = Rig(setting, micro_batch_size)
    rig.step(rig.pixels[:4])  # Optimizer state and what libraries allocate once are not the step's.
    if setting.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rig.step(rig.pixels)
        return Measured(None, 0.0, (torch.cuda.max_memory_allocated() - before) / 1e6)
    # An earlier peak (imports) above what is in use now counts against us: never flattering.
    before = psutil.Process().memory_info().rss
    rig.step(rig.pixels)
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(None, 0.0, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 1e6)


def seconds(setting: Setting) -> dict[int | None, list[float]]:
    """Time of a step, all sizes in turns."""
    rig = Rig(setting, None)
    times: dict[int | None, list[float]] = {size: [] for size in SIZES}
    for turn in range(setting.repeats + 1):
        for size in SIZES:
            rig.split(size)
            clock = Clock(setting.device, setting.threads)
            rig.step(rig.pixels)
            clock.lap("all")
            if turn:
                times[size].append(clock.seconds()["all"])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-small", help="vit-small, resnet18, resnet50, or what --backbone takes")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--patch", type=int, default=16, help="patch size of vit-small")
    parser.add_argument("--batch", type=int, default=240, help="images of a step, views included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; more than one measures wall time")
    setting = Setting(**vars(parser.parse_args()))
    start = time.perf_counter()
    memory = {size: in_a_fresh_process(peak, setting, size).extra_mb for size in SIZES}
    times = seconds(setting)
    patch = f"/{setting.patch}" if setting.model == "vit-small" else ""
    print(f"{setting.model}{patch} at {setting.size} px, {setting.batch} images, {setting.device}\n")
    print(f"{'micro_batch_size':16} {'MB':>7} {'memory':>7} {'seconds':>8} {'time':>6}")
    ratios = {}
    for size in SIZES:
        slower = statistics.median(a / b for a, b in zip(times[size], times[None], strict=True))
        ratios[size] = (memory[size] / memory[None], slower)
        typical = statistics.median(times[size])
        print(f"{size or 'none':16} {memory[size]:7.0f} {ratios[size][0]:7.2f} {typical:8.2f} {slower:6.2f}")
    less, slower = ratios[16]
    print(f"\nwith 16: memory {less:.2f}   target <= 0.25 {'met' if less <= 0.25 else 'MISSED'}")
    print(f"with 16: time   {slower:.2f}   target <= 1.5  {'met' if slower <= 1.5 else 'MISSED'}")
    print(f"\nall in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

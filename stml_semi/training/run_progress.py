"""Progress of a run: its plan, then its steps with loss terms, speed, waiting and memory."""

from stml_semi.config import TrainConfig
from stml_semi.runtime.progress import Counter


class RunProgress(Counter):
    """A counter of steps."""

    def __init__(self, config: TrainConfig, *, enabled: bool) -> None:
        """
        Args:
            config: of the run.
            enabled: only the main process talks.
        """
        super().__init__("step", config.max_steps, enabled=enabled)
        self.labeled = config.labeled is not None

    def step(self, step: int, line: dict[str, float] | None) -> None:
        """A step is done; `line` is what metrics.jsonl got, if anything."""
        if self.done < step - 1:
            self.skip(step - 1 - self.done)
        if line is not None:
            self.terms = _terms(line, labeled=self.labeled)
        self.advance(1, quiet=line is None)


def _terms(line: dict[str, float], *, labeled: bool) -> list[str]:
    """Terms that do not exist yet, or never will, are left out."""
    losses = {"contrastive": "relaxed_contrastive", "distillation": "self_distillation"}
    terms = [f"labeled {line['labeled_loss']:.3f}"] if labeled else []
    terms += [f"{name} {line[key]:.3g}" for name, key in losses.items() if line[key]]
    if line["bad_images"]:
        terms.append(f"{line['bad_images']:.0f} unreadable")
    if "trust" in line:
        terms.append(f"trust {line['trust']:.0%}")
    terms += [f"{line['images_per_second']:.0f} images/s", f"data wait {line['data_wait']:.0%}"]
    if "gpu_memory_gib" in line:
        terms.append(f"GPU memory {line['gpu_memory_gib']:.1f} GiB")
    return terms

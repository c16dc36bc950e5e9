"""Progress of a run: its steps, loss terms, speed, waiting and memory."""

from typing import Any

from stml_semi.config import TrainConfig
from stml_semi.data.run_tables import Tables
from stml_semi.runtime.progress import Counter


class RunProgress(Counter):
    """A counter of steps."""

    def __init__(self, config: TrainConfig, tables: Tables, *, processes: int, enabled: bool) -> None:
        """
        Args:
            config: of the run.
            tables: its pictures, named in the first line.
            processes: how many train together, named there too.
            enabled: only the main process talks.
        """
        super().__init__("step", config.max_steps, enabled=enabled)
        sources = [f"{_size(t)} {kind} images ({t.name})" for kind, t in _named(tables) if t is not None]
        places = f"backbone {config.backbone}; run folder {config.output_dir}"
        self.console.print(f"{', '.join(sources)}; {places}; {processes} process{'es' * (processes > 1)}")

    def step(self, step: int, line: dict[str, float] | None) -> None:
        """A step is done; `line` is what metrics.jsonl got, if anything."""
        if self.done < step - 1:
            self.skip(step - 1 - self.done)
        if line is not None:
            self.text = _terms(line)
        self.advance(1, quiet=line is None)


def _named(tables: Tables) -> list[tuple[str, Any]]:
    kinds = ("labeled", "unlabeled", "validation", "evaluation")
    return [(kind, getattr(tables, kind)) for kind in kinds]


def _size(table: Any) -> str:
    return str(len(table)) if hasattr(table, "__len__") else "a stream of"


def _terms(line: dict[str, float]) -> str:
    text = f"labeled {line['labeled_loss']:.3f}"
    if line["relaxed_contrastive"]:
        text += f" contrastive {line['relaxed_contrastive']:.3f} distillation {line['self_distillation']:.4f}"
    if "trust" in line:
        text += f" trust {line['trust']:.0%}"
    text += f" {line['images_per_second']:.0f} images/s, data wait {line['data_wait']:.0%}"
    if "gpu_memory_gib" in line:
        text += f", GPU memory {line['gpu_memory_gib']:.1f} GiB"
    return text + (f", {line['bad_images']:.0f} bad images" if line["bad_images"] else "")

"""From what was asked for to a complete configuration: defaults that depend on the command and the data."""

import os
from pathlib import Path
from typing import Any, Literal

from stml_semi.config import TrainConfig, flag
from stml_semi.data.benchmarks.facts import BENCHMARKS, benchmark_of
from stml_semi.data.sources.request import specs_of
from stml_semi.run_folder.recipe import build_config, read_recipe
from stml_semi.runtime.errors import BadInput
from stml_semi.training.trackers import check_installed

Command = Literal["semi", "unsup", "sup"]


def resolve(command: Command, values: dict[str, Any]) -> TrainConfig:
    """The configuration of a command: what it does not use is dropped, what depends on the data is filled in.

    Raises:
        BadInput: a source that the command needs is missing, or the fields do not fit together.
    """
    values = dict(values)
    for name in ("labeled", "unlabeled", "eval", "data_root", "backbone", "output_dir"):
        if not isinstance(values.get(name, ""), str | None):
            raise BadInput(f"{flag(name)} {values[name]!r}: should be text; several sources are joined by commas")
    needs = {"semi": ("labeled", "unlabeled"), "unsup": ("unlabeled",), "sup": ("labeled",)}[command]
    if not values.get("output_dir") and all(values.get(name) for name in needs):
        parts = [command, *(_file_name(values[name]) for name in needs)]
        values["output_dir"] = os.path.join("runs", "-".join(parts))
    if values.get("resume") and (stored := Path(values.get("output_dir") or "", "config.yaml")).is_file():
        # The run knows how it was started; what is given again must agree, or be of the kind that may change.
        values = read_recipe(stored) | {name: value for name, value in values.items() if value != "auto"}
    known = (values.get("labeled"), values.get("unlabeled"))
    for name in ("labeled", "unlabeled"):
        if name not in needs:
            values[name] = None  # `sup --recipe semi.yaml` is the baseline of that recipe.
        elif not values.get(name):
            raise BadInput(
                f"{command} needs --{name}: a folder, a table, a hub id or a benchmark ({', '.join(BENCHMARKS)})"
            )
    benchmarks = [benchmark_of(part) for spec in known for part in specs_of(spec)]
    benchmark = next((found for found in benchmarks if found), None)
    # A pool beside labels of the user's own says nothing of what those are to be tested on.
    tested = next((found for part in specs_of(known[0] or known[1]) if (found := benchmark_of(part))), None)
    if not values.get("eval") and not values.get("test_classes") and tested is not None:
        values["eval"] = tested.eval
    if values.get("backbone_weights") and values.get("backbone", "auto") == "auto":
        values["backbone"] = "resnet50"
    if values.get("backbone", "auto") == "auto":
        values["backbone"] = (benchmark and benchmark.backbone) or "facebook/dinov2-small"
    if (
        values.get("learning_rate") is None
        and benchmark is not None
        and benchmark.learning_rate
        and "unlabeled" in needs
    ):
        values["learning_rate"] = benchmark.learning_rate
    if values.get("augment", "auto") == "auto":
        values["augment"] = (benchmark and benchmark.augment) or "paper"
    config = build_config(values)
    check_installed(config.trackers)
    if config.labeled and config.unlabeled:
        # Written down, so that a run that is resumed for longer keeps its warm-up.
        config = config.model_copy(update={"label_warmup_steps": config.warmup_steps})
    return config


def _file_name(spec: str) -> str:
    """A source as part of a folder name: data/birds/ -> birds, user/name:test -> name-test."""
    parts = [part.rstrip("/\\").replace("\\", "/").split("/")[-1] for part in specs_of(spec)]
    return "+".join(part.replace(":", "-") for part in parts)

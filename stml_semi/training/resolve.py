"""From what was asked for to a complete configuration: defaults that depend on the command and the data."""

import math
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stml_semi.config import TrainConfig, flag
from stml_semi.data.batches.plan import held_out_classes
from stml_semi.data.benchmarks.facts import BENCHMARKS, benchmark_of
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import Tables
from stml_semi.data.sources.request import specs_of
from stml_semi.models.embedder import Embedder
from stml_semi.run_folder.recipe import build_config, read_recipe
from stml_semi.runtime.errors import BadInput
from stml_semi.training.trackers import check_installed

Command = Literal["semi", "unsup", "sup"]

_FEWEST_STEPS, _LABELED_EPOCHS, _UNLABELED_EPOCHS = 300, 100, 30
"""Of the default of --max-steps."""


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
    if command == "sup" and values.get("label_learning_rate", "auto") != "auto":
        # Where labels alone decide: of a run of `semi` as the recipe, this is the baseline's rate.
        values["learning_rate"] = values.pop("label_learning_rate")
    if values.get("backbone_weights") and values.get("backbone", "auto") == "auto":
        values["backbone"] = "resnet50"
    if values.get("backbone", "auto") == "auto":
        values["backbone"] = (benchmark and benchmark.backbone) or "facebook/dinov2-small"
    if (
        values.get("learning_rate", "auto") == "auto"
        and benchmark is not None
        and benchmark.learning_rate
        and "unlabeled" in needs
    ):
        values["learning_rate"] = benchmark.learning_rate
    if values.get("augment", "auto") == "auto":
        values["augment"] = (benchmark and benchmark.augment) or "paper"
    config = build_config(values)
    check_installed(config.trackers)
    return config


class Fitted(NamedTuple):
    """A configuration that fits its data."""

    config: TrainConfig
    notes: tuple[str, ...]
    """What differs from the usual defaults, and why."""


def fit_to_data(config: TrainConfig, tables: Tables) -> Fitted:
    """Adapts the defaults to few classes, few images and little data; what was set explicitly stays as it is."""
    fits = [_fit_labeled(config, tables), _fit_unlabeled(config, tables)]
    changes = {name: value for fit in fits for name, value in fit.items()}
    notes = [f"{flag(name)} {value} (fits {_counted(tables, name)})" for name, value in changes.items()]
    config = config.model_copy(update=changes)
    if "max_steps" not in config.model_fields_set:
        steps = _default_steps(config, tables)
        changes = {"max_steps": steps}
        if "eval_every" not in config.model_fields_set:
            changes["eval_every"] = min(config.eval_every, math.ceil(steps / 4))
        config = build_config(config.model_dump() | changes)
    if config.labeled and config.unlabeled:
        # Written down, so that a run that is resumed for longer keeps its warm-up.
        config = config.model_copy(update={"label_warmup_steps": config.warmup_steps})
    return Fitted(config, tuple(notes))


def _fit_labeled(config: TrainConfig, tables: Tables) -> dict[str, int]:
    if tables.labeled is None:
        return {}
    classes, explicit = len(tables.labeled.classes), config.model_fields_set
    if classes < 2 or config.classes_per_batch <= classes:
        return {}
    if "labeled_batch_size" not in explicit:
        return {"labeled_batch_size": classes * config.images_per_class}
    size = config.labeled_batch_size
    fitting = [each for each in range(config.images_per_class, size // 2 + 1) if size % each == 0]
    each = next((each for each in fitting if size // each <= classes), None)
    return {} if each is None or "images_per_class" in explicit else {"images_per_class": each}


def _fit_unlabeled(config: TrainConfig, tables: Tables) -> dict[str, int]:
    if not isinstance(tables.unlabeled, ImageTable):
        return {}
    images, explicit, changes = len(tables.unlabeled), config.model_fields_set, dict[str, int]()
    if images < config.unlabeled_batch_size and "unlabeled_batch_size" not in explicit:
        neighbors = config.num_neighbors
        if images < neighbors and "num_neighbors" not in explicit:
            changes["num_neighbors"] = neighbors = images
        if fitting := images // neighbors * neighbors:
            changes["unlabeled_batch_size"] = fitting
    return changes


def _counted(tables: Tables, name: str) -> str:
    if name in ("labeled_batch_size", "images_per_class"):
        assert tables.labeled is not None
        return f"{len(tables.labeled.classes)} classes"
    assert isinstance(tables.unlabeled, ImageTable)
    return f"{len(tables.unlabeled)} unlabeled images"


def _default_steps(config: TrainConfig, tables: Tables) -> int:
    """Steps that the data are worth; on a stream the most."""
    steps = [_FEWEST_STEPS]
    if tables.labeled is not None:
        steps.append(_LABELED_EPOCHS * len(tables.labeled) // config.labeled_batch_size)
    if isinstance(tables.unlabeled, ImageTable):
        steps.append(_UNLABELED_EPOCHS * len(tables.unlabeled) // config.unlabeled_batch_size)
    elif tables.unlabeled is not None:
        steps.append(config.max_steps)
    found, warmup = min(max(steps), config.max_steps), max(config.lr_warmup_steps, config.label_warmup_steps or 0)
    return config.max_steps if warmup >= found else found


def with_learning_rate(config: TrainConfig, embedder: Embedder, labeled: ImageTable | None) -> TrainConfig:
    """The configuration with numbers in place of `auto`.

    Transformers are fine-tuned with smaller rates than convolutional networks, few parameters with larger ones than
    many. These rates suit labels alone. Where trust in unlabeled images is measured, a convolutional network has ten
    times the rate at full trust; transformers were not tried.

    Args:
        config: of the run.
        embedder: its model.
        labeled: its labeled images.

    Raises:
        BadInput: labels alone are to have a higher rate than all.
    """
    transformer = any("attention" in type(module).__name__.lower() for module in embedder.backbone.modules())
    trusted = 1.0
    if config.train_layers == "last:0" and not config.lora_rank:
        rate = 1e-3
    elif config.lora_rank:
        rate = 1e-4
    elif not transformer:
        rate = 1e-4
        trusted = 10.0 if len(held_out_classes(config, labeled)) else 1.0
    else:
        rate = 1e-5 if config.train_layers == "all" else 3e-5
    if config.learning_rate == "auto":
        config = config.model_copy(update={"learning_rate": trusted * rate})
    if config.command != "semi":
        return config
    full, least = config.peak_learning_rate, config.label_learning_rate
    if least == "auto":
        return config.model_copy(update={"label_learning_rate": min(rate, full)})
    if least > full:
        raise BadInput(
            f"--label-learning-rate {least:g} is above --learning-rate, which is {full:g}: raise that, or lower this"
        )
    return config


def _file_name(spec: str) -> str:
    """A source as part of a folder name: data/birds/ -> birds, user/name:test -> name-test."""
    parts = [part.rstrip("/\\").replace("\\", "/").split("/")[-1] for part in specs_of(spec)]
    return "+".join(part.replace(":", "-") for part in parts)

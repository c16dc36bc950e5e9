"""The model card: what a stranger needs to use a trained model, and what the hub's search needs to find it."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from stml_semi.config import TrainConfig, flag
from stml_semi.data.benchmarks.facts import BENCHMARKS, benchmark_of
from stml_semi.data.sources.specs import specs_of
from stml_semi.models.backbone import resolve_backbone
from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.card_curves import FILE as CURVES
from stml_semi.sharing.card_curves import draw_curves
from stml_semi.training.best_student import is_validation

Weights = Literal["student", "teacher"]
Dtype = Literal["float32", "bfloat16", "float16"]

PLACE = "path/to/this/folder"
"""Stands for the model in the card's examples until it has a name: `push` puts the repository's id here."""

_TAGS = ["image-retrieval", "metric-learning", "sentence-transformers", "generated_from_trainer"]
_METHODS = {"semi": ["semi-supervised", "stml"], "unsup": ["self-supervised", "stml"], "sup": ["supervised"]}
# How a run was started and where it went says nothing about the model.
_PRIVATE = {"output_dir", "resume", "overwrite", "dry_run", "push_to_hub", "hub_model_id", "hub_private", "license"}
_COMMAND_WIDTH = 84  # What a card shows without scrolling.
_SOURCES = ("labeled", "unlabeled", "eval")
_ROWS = {"frozen": "frozen backbone, before training", "student": "student", "teacher": "teacher"}
_POOLING = {
    "cls": "the class token",
    "mean": "the mean over the patches",
    "mean_max": "mean plus maximum over the feature map (GAP + GMP)",
    "pooler": "the backbone's own pooler",
}


class Origin(NamedTuple):
    """Where a model comes from, as far as the hub knows it."""

    base_model: str | None
    """Hub id of the backbone."""
    datasets: tuple[str, ...]
    """Hub ids of the training data."""
    license: str | None
    """As the base model's card states it."""


class CardFacts(NamedTuple):
    """What the card states."""

    config: TrainConfig
    lines: Sequence[dict[str, Any]]
    """Lines of metrics.jsonl: evaluations, and losses for the curves."""
    weights: Weights
    step: int
    """Steps that the weights have taken."""
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    pooling: str
    """Kind of pooling, never auto."""
    claim: str
    """What may be said of the classes that were evaluated on."""
    origin: Origin
    dtype: Dtype = "float32"
    """Of the stored weights."""
    onnx: bool = False
    """Whether embedder.onnx lies beside the card."""


def card_files(facts: CardFacts) -> dict[str, bytes]:
    """README.md, its picture and training_config.yaml of an exported model: file name -> content.

    Raises:
        BadInput: the metadata are not what the hub accepts (a license that is no identifier).
    """
    curves = draw_curves([line for line in facts.lines if line.get("step", 0) <= facts.step])
    card = _card(facts, curves=curves is not None)
    check_card(card)
    files = {"README.md": card.encode(), "training_config.yaml": training_yaml(facts.config).encode()}
    return files if curves is None else files | {CURVES: curves}


def find_origin(config: TrainConfig) -> Origin:
    """Looks up base model, data sets and license of a configuration; paths count from the working directory."""
    known = not config.backbone_weights  # A file of weights says neither where it comes from nor what it allows.
    backbone = config.backbone if known and is_hub_id(config.backbone) else None
    specs = [part for name in _SOURCES[:2] for part in specs_of(getattr(config, name))]
    ids = [re.sub(r"(@[\w./-]+)?(:[\w.-]+(\[[^\]]*\])?)?$", "", spec) for spec in specs if not Path(spec).exists()]
    datasets = [name for name in ids if name not in BENCHMARKS and is_hub_id(name)]
    return Origin(backbone, tuple(dict.fromkeys(datasets)), license_of(config.backbone) if known else None)


def is_hub_id(name: str) -> bool:
    """Whether a name can only be meant for the hub: no local file or embedded backbone, and spelled like an id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if Path(resolve_backbone(name)).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name or not Path(name).suffix


def license_of(backbone: str) -> str | None:
    """The license that a backbone's card states. None where there is no card, no license in it, or no connection."""
    from huggingface_hub import ModelCard

    place = Path(resolve_backbone(backbone))
    readme = place / "README.md"
    if place.exists() and not readme.is_file():
        return None
    try:
        card = ModelCard.load(str(readme) if readme.is_file() else backbone, ignore_metadata_errors=True)
    except Exception:  # Offline, gated, without a card, with one that is no YAML: then it is not known.
        return None
    license = getattr(card.data, "license", None)
    return license if isinstance(license, str) else None


def check_card(text: str) -> None:
    """Checks a card's metadata without asking the hub, which checks them again.

    Raises:
        BadInput: what is wrong, and how to mend it.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    data = ModelCard(text).data.to_dict()
    license = data.get("license")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(license)):
        raise BadInput(
            f"--license {license}: give the hub's identifier, such as apache-2.0, mit, cc-by-nc-4.0 or other"
        )
    for name in ("base_model", "datasets"):
        values = data.get(name, [])
        for value in [values] if isinstance(values, str) else values:
            try:
                validate_repo_id(value)
            except HFValidationError as error:
                raise BadInput(f"README.md: {name} {value!r} is no hub id ({error}); take it out") from None
    empty = [key for key, value in data.items() if value is None or value == []]
    if empty:
        raise BadInput(f"README.md: {', '.join(empty)} has no value; take it out, the hub refuses nulls")


def training_yaml(config: TrainConfig) -> str:
    """The configuration as a recipe for other people: without this machine's folders."""
    values = _public(config)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def command_line(config: TrainConfig) -> str:
    """The command that repeats the run; what has its default is left out."""
    parts = [f"accelerate launch cli.py {_command(config)}"]
    for name, value in _public(config).items():
        if value is None or value == TrainConfig.model_fields[name].default:
            continue
        part = flag(name) if value is True else shlex.join([flag(name), str(value)])
        fits = len(parts[-1]) + len(part) < _COMMAND_WIDTH
        parts[-1:] = [f"{parts[-1]} {part}"] if fits else [parts[-1], f"    {part}"]
    return " \\\n".join(parts)


def _command(config: TrainConfig) -> str:
    return "semi" if config.labeled and config.unlabeled else "sup" if config.labeled else "unsup"


def _public(config: TrainConfig) -> dict[str, Any]:
    """Fields for other people: absolute paths, which name users and machines, end in their last part."""
    values = config.model_dump(exclude=_PRIVATE)
    for name in (*_SOURCES, "backbone", "backbone_weights"):
        if values[name]:
            values[name] = ",".join(_without_folders(part.strip()) for part in values[name].split(","))
    return values


def _without_folders(spec: str) -> str:
    path = Path(spec)
    return path.name if path.is_absolute() or spec.startswith(("~", "..")) else spec


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    config, origin = facts.config, facts.origin
    own = [line for line in _last(facts.lines, facts.step) if line["model"] == facts.weights]
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Image retrieval",
            dataset_type=_dataset_type(line["data"], origin),
            dataset_name=_without_folders(line["data"]),
            metric_type=key,
            metric_name=_title(key),
            metric_value=round(line[key], 4),
        )
        for line in own
        for key in _keys(line)
    ]
    data = ModelCardData(
        base_model=origin.base_model,
        datasets=list(origin.datasets) or None,
        eval_results=results or None,
        library_name="sentence-transformers",
        license=config.license or origin.license,
        metrics=[key for line in own for key in _keys(line)] or None,
        model_name=_name(config),
        pipeline_tag="image-feature-extraction",
        tags=[*_TAGS, *_METHODS[_command(config)]],
    )
    values = data.to_dict()
    values.pop("model_name", None)  # It names the entry of model-index; by itself it is no key of the hub.
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _dataset_type(data: str, origin: Origin) -> str:
    name = data.split(":")[0]
    return name if name in BENCHMARKS or name in origin.datasets else "unknown"


def _name(config: TrainConfig) -> str:
    if config.hub_model_id:
        return config.hub_model_id.split("/")[-1]
    return f"{Path(config.backbone).name}-stml-{_command(config)}"


def _card(facts: CardFacts, *, curves: bool) -> str:
    from stml_semi.sharing.card_text import body

    config = facts.config
    lines = _last(facts.lines, facts.step)
    return f"---\n{_metadata(facts)}---\n\n" + body(
        name=_name(config),
        place=config.hub_model_id or PLACE,
        backbone=_without_folders(config.backbone_weights or config.backbone),
        base_model=facts.origin.base_model,
        license=config.license or facts.origin.license,
        pooling=_POOLING[facts.pooling],
        size=facts.size,
        embedding_dim=config.embedding_dim,
        weights=facts.weights,
        steps=f"{facts.step} of {config.max_steps}" if facts.step != config.max_steps else str(facts.step),
        data=_data(config),
        results=_results(lines, facts),
        command=command_line(config),
        kind=_command(config),
        dtype=facts.dtype,
        onnx=facts.onnx,
        curves=CURVES if curves else None,
    )


def _data(config: TrainConfig) -> list[str]:
    """A line for each source, with what is known of its license."""
    text = []
    for name in _SOURCES:
        for spec in specs_of(getattr(config, name)):
            known = benchmark_of(spec)
            note = f"{known.title}. {known.license}" if known else "Its license: see its source; none is claimed here."
            use = "Evaluated on" if name == "eval" else name.capitalize()
            text.append(f"- {use}: `{_without_folders(spec)}`. {note.strip()}")
    return text


def _results(lines: list[dict[str, Any]], facts: CardFacts) -> str:
    if not lines:
        return "This run was not evaluated: it was given no labeled images of other classes."
    first, keys = lines[0], _keys(lines[0])
    claim = f" {facts.claim[:1].upper()}{facts.claim[1:]}." if facts.claim else ""
    kept = facts.config.validation_classes if facts.weights == "student" else None
    chosen = f": the step was chosen on {100 * kept:g}% of the labeled classes, kept out of training" if kept else ""
    rows = [f"| | {' | '.join(map(_title, keys))} |", "|---" * (len(keys) + 1) + "|"]
    for line in lines:
        here = " (these weights)" if line["model"] == facts.weights else ""
        values = " | ".join(f"{100 * line[key]:.1f}" for key in keys)
        rows.append(f"| {_ROWS[line['model']]}{here} | {values} |")
    return (
        f"`{_without_folders(first['data'])}`: each of {first['num_queries']:,} images is searched for among the "
        f"{first['num_gallery']:,} images of the gallery, without itself, by cosine; percent.{claim} No checkpoint was "
        f"chosen on these images{chosen}.\n\n" + "\n".join(rows)
    )


def _last(lines: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The newest evaluation of each model that the exported weights have seen."""
    seen = (line for line in lines if "model" in line and line["step"] <= step and not is_validation(line))
    return list({line["model"]: line for line in seen}.values())


def _keys(line: dict[str, Any]) -> list[str]:
    return [*(key for key in line if key.startswith("recall@")), "r_precision", "map@r"]


def _title(key: str) -> str:
    return {"r_precision": "R-precision", "map@r": "MAP@R"}.get(key, key)

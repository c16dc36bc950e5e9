"""The model card: what a stranger needs to use a trained model, and what the hub's search needs to find it."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from stml_semi.config import Mark, TrainConfig, fields_that, flag
from stml_semi.data.benchmarks.facts import BENCHMARKS, benchmark_of
from stml_semi.data.sources.request import specs_of
from stml_semi.metrics import Threshold, score_title
from stml_semi.models.model_files import parse_name
from stml_semi.run_folder.log import Served, exported, is_validation, score_keys, weights_name
from stml_semi.run_folder.verdict import verdict
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.templates import render
from stml_semi.sharing.card_curves import FILE as CURVES
from stml_semi.sharing.card_curves import draw_curves
from stml_semi.sharing.inputs import Inputs
from stml_semi.sharing.origin import Origin
from stml_semi.sharing.thresholds import FILE, Thresholds

Dtype = Literal["float32", "bfloat16", "float16"]

PLACE = "path/to/this/folder"
"""Stands for the model in the card's examples until it has a name: `push` puts the repository's id here."""

_TAGS = ["image-retrieval", "metric-learning", "sentence-transformers", "generated_from_trainer"]
_METHODS = {"semi": ["semi-supervised", "stml"], "unsup": ["self-supervised", "stml"], "sup": ["supervised"]}
_COMMAND_WIDTH = 84  # What a card shows without scrolling.
_POOLING = {
    "cls": "the class token",
    "mean": "the mean over the patches",
    "mean_max": "mean plus maximum over the feature map (GAP + GMP)",
    "pooler": "the backbone's own pooler",
}
_TRAINING = {
    "semi": "labeled images by a proxy loss and unlabeled images by self-taught relations (STML) together",
    "sup": "labeled images alone, by a proxy loss",
    "unsup": "unlabeled images alone, by self-taught relations (STML)",
}
_PRECISIONS = (0.8, 0.9, 0.95, 0.99)
"""Of the thresholds that the card shows."""
_STORED = ", stored as {}: half the size, computed with in float32"
_CHOSEN = ": the {} was chosen on {:g}% of the labeled classes, kept out of training"
_WEIGHTS: dict[Served, str] = {
    "student": "the **student**",
    "teacher": "the **teacher**, an exponential moving average of the trained weights",
    "interpolated": "**{alpha:.0%} of the student's and {rest:.0%} of those before training**, averaged ([WiSE-FT]"
    "(https://arxiv.org/abs/2109.01903)), which did better on other classes than the student",
    "frozen": "the **frozen backbone**, without a head: it did better on classes kept out of training than the models "
    "of this training",
}


class CardFacts(NamedTuple):
    """What the card states."""

    config: TrainConfig
    lines: Sequence[dict[str, Any]]
    """Lines of metrics.jsonl: evaluations, and losses for the curves."""
    weights: Served
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
    inputs: Inputs = Inputs()
    """What may be handed to it."""
    onnx: bool = False
    """Whether embedder.onnx lies beside the card."""
    alpha: float | None = None
    """Share of the student's weights in interpolated ones."""
    width: int | None = None
    """Of an embedding, if it is not the configuration's: a frozen backbone has no head."""
    thresholds: Thresholds | None = None
    """What validation classes say of the cosine of a match."""


def card_files(facts: CardFacts) -> dict[str, bytes]:
    """README.md, its image and training_config.yaml of an exported model: file name -> content.

    Raises:
        BadInput: the metadata are not what the hub accepts (a license that is no identifier).
    """
    seen = [line for line in facts.lines if line.get("step", 0) <= facts.step]
    curves = draw_curves(seen) if facts.step else None
    card = _card(facts, curves=curves is not None)
    check_card(card)
    files = {
        "README.md": card.encode(errors="backslashreplace"),
        "training_config.yaml": training_yaml(facts.config).encode(),
    }
    if facts.thresholds is not None:
        files[FILE] = facts.thresholds.to_json()
    return files if curves is None else files | {CURVES: curves}


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
    parts = [f"stml-semi {config.command}"]
    for name, value in _public(config).items():
        if value is None or value == TrainConfig.model_fields[name].default:
            continue
        part = flag(name) if value is True else shlex.join([flag(name), str(value)])
        fits = len(parts[-1]) + len(part) < _COMMAND_WIDTH
        parts[-1:] = [f"{parts[-1]} {part}"] if fits else [parts[-1], f"    {part}"]
    return " \\\n".join(parts)


def _public(config: TrainConfig) -> dict[str, Any]:
    """Fields for other people: absolute paths, which name users and machines, end in their last part."""
    values = config.model_dump(exclude=set(fields_that(Mark.UNPUBLISHED)))
    for name in fields_that(Mark.PLACE):
        if values.get(name):
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
            metric_name=score_title(key),
            metric_value=round(line[key], 4),
        )
        for line in own
        for key in score_keys(line)
    ]
    data = ModelCardData(
        base_model=origin.base_model,
        datasets=list(origin.datasets) or None,
        eval_results=results or None,
        library_name="sentence-transformers",
        license=config.license or origin.license,
        metrics=[key for line in own for key in score_keys(line)] or None,
        model_name=_name(config),
        pipeline_tag="image-feature-extraction",
        tags=[*_TAGS, *_METHODS[config.command]],
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
    return f"{Path(parse_name(config.backbone).place).name}-stml-{config.command}"


def _card(facts: CardFacts, *, curves: bool) -> str:
    config, origin = facts.config, facts.origin
    lines = _last(facts.lines, facts.step)
    base = f"[{origin.base_model}](https://huggingface.co/{origin.base_model})" if origin.base_model else None
    if base and origin.commit:
        base += f" at commit {origin.commit}"
    choice = exported(facts.lines)
    # Of a run that validation chose a student of, the teacher is what somebody asked `export` for.
    chosen = facts.weights != "teacher" or (choice is not None and choice.model == "teacher")
    kept = config.validation_classes if chosen else None
    values = {
        "metadata": _metadata(facts),
        "config": config,
        "name": _name(config),
        "place": config.hub_model_id or PLACE,
        "backbone": base or f"`{_without_folders(config.backbone_weights or config.backbone)}`",
        "license": config.license or origin.license,
        "pooling": _POOLING[facts.pooling],
        "size": facts.size,
        "training": _TRAINING[config.command],
        "weights": facts.weights,
        "width": facts.width or config.embedding_dim,
        "about": _WEIGHTS[facts.weights].format(alpha=facts.alpha, rest=1 - (facts.alpha or 0)),
        "steps": f"{facts.step} of {config.max_steps}" if facts.step != config.max_steps else str(facts.step),
        "stored": _STORED.format(facts.dtype) * (facts.dtype != "float32"),
        "data": _data(config),
        "results": lines,
        "keys": score_keys(lines[0]) if lines else [],
        "rows": {line["model"]: _row(line) for line in lines},
        "evaluation": _without_folders(lines[0]["data"]) if lines else "",
        "claim": f" {facts.claim[:1].upper()}{facts.claim[1:]}." * bool(facts.claim),
        "verdict": _verdict(facts),
        "chosen": _CHOSEN.format("step" if facts.weights == "student" else "model", 100 * kept) if kept else "",
        "command": command_line(config),
        "inputs": facts.inputs,
        "thresholds": facts.thresholds,
        "shown_thresholds": _shown(facts.thresholds),
        "onnx": facts.onnx,
        **_truncated(facts, lines),
        "curves": CURVES if curves else None,
    }
    return render("sharing/card.md", values, filters={"score_title": score_title}, escape=False)


def _truncated(facts: CardFacts, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What leading dimensions score, and of how many the scores of the table are if the model has fewer."""
    own = next((line for line in lines if line["model"] == facts.weights), {})
    full, width = facts.config.embedding_dim, facts.width or facts.config.embedding_dim
    sizes = {size: scores for size, scores in own.get("truncated", {}).items() if int(size) <= width}
    names = list(next(iter(sizes.values()), {}))
    whole = {str(full): {name: own[name] for name in names if name in own}} if width == full else {}
    complete = whole if whole and len(whole[str(full)]) == len(names) else {}
    cut = full if facts.weights != "frozen" and width < full else None
    return {"truncated": sizes | complete if sizes else {}, "truncated_names": names, "cut_from": cut}


def _verdict(facts: CardFacts) -> str:
    """Of the weights that the run exports; other weights have none."""
    choice, found = exported(facts.lines), verdict(facts.lines, facts.claim)
    return found.text if found and choice and choice.model == facts.weights else ""


def _shown(known: Thresholds | None) -> list[Threshold]:
    return [] if known is None else [one for one in known.thresholds if one.precision in _PRECISIONS]


def _row(line: dict[str, Any]) -> str:
    name = weights_name(line["model"], line.get("alpha"))
    return f"{name}, before training" if line["model"] == "frozen" else name


def _data(config: TrainConfig) -> list[str]:
    """A line for each source, with what is known of its license."""
    text = []
    for name in fields_that(Mark.SOURCE):
        for spec in specs_of(getattr(config, name)):
            known = benchmark_of(spec)
            note = f"{known.title}. {known.license}" if known else "Its license: see its source; none is claimed here."
            use = "Evaluated on" if name == "eval" else name.capitalize()
            text.append(f"- {use}: `{_without_folders(spec)}`. {note.strip()}")
    return text


def _last(lines: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The newest evaluation of each model that the exported weights have seen."""
    seen = (line for line in lines if "model" in line and line["step"] <= step and not is_validation(line))
    return list({line["model"]: line for line in seen}.values())

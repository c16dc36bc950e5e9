"""Where a model comes from, as far as the hub knows it: base model, data sets, license."""

import re
from pathlib import Path
from typing import NamedTuple

from stml_semi.config import TrainConfig
from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.sources.request import specs_of
from stml_semi.models.model_files import parse_name, resolve_backbone


class Origin(NamedTuple):
    """What the card's metadata may name."""

    base_model: str | None
    """Hub id of the backbone."""
    datasets: tuple[str, ...]
    """Hub ids of the training data."""
    license: str | None
    """As the base model's card states it."""
    commit: str | None = None
    """Of the base model on the hub, where training began."""


def find_origin(config: TrainConfig) -> Origin:
    """Looks up base model, data sets and license of a configuration; paths count from the working directory."""
    known = not config.backbone_weights  # A file of weights says neither where it comes from nor what it allows.
    backbone = parse_name(config.backbone).place
    base_model = backbone if known and is_hub_id(backbone) else None
    specs = [part for spec in (config.labeled, config.unlabeled) for part in specs_of(spec)]
    ids = [re.sub(r"(@[\w./-]+)?(:[\w.-]+(\[[^\]]*\])?)?$", "", spec) for spec in specs if not Path(spec).exists()]
    datasets = [name for name in ids if name not in BENCHMARKS and is_hub_id(name)]
    return Origin(base_model, tuple(dict.fromkeys(datasets)), license_of(config.backbone) if known else None)


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
    from huggingface_hub import ModelCard, hf_hub_download

    name = parse_name(backbone)
    readme = Path(name.place) / "README.md"
    if Path(name.place).exists() and not readme.is_file():
        return None
    try:
        file = readme if readme.is_file() else hf_hub_download(name.place, "README.md", revision=name.revision)
        card = ModelCard.load(file, ignore_metadata_errors=True)
    except Exception:  # Offline, gated, without a card, with one that is no YAML: then it is not known.
        return None
    license = getattr(card.data, "license", None)
    return license if isinstance(license, str) else None

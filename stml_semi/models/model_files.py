"""What a model is called, and what its files may ask for. They come from anywhere: none of them runs code, or leads out
of its folder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from stml_semi.runtime.errors import BadInput, one_line

EMBEDDED = Path(__file__).parent / "embedded"

# Of a vision model's blocks; the deepest published ones have under 200. A config.json may say anything.
_MOST_LAYERS = 1000
# In a configuration these name Python files of its folder or of another repository.
_CODE = ("auto_map", "custom_pipelines")
# In a timm model's arguments these name weights elsewhere.
_ELSEWHERE = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


class ModelName(NamedTuple):
    """What a user typed after --model or --backbone."""

    place: str
    """A local folder, or a hub id without its revision."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


def resolve_backbone(name: str) -> str:
    """tiny-resnet is a folder inside the package; everything else stays what it is."""
    folder = EMBEDDED / name
    return str(folder) if folder.is_dir() and not Path(name).exists() else name


def parse_name(name: str) -> ModelName:
    """`user/model@revision` -> its parts. What exists under the very name that was typed is that path.

    Raises:
        BadInput: nothing follows the @.
    """
    if Path(name).expanduser().exists():
        return ModelName(str(Path(name).expanduser()))
    place, at, revision = name.partition("@")
    if at and not revision:
        raise BadInput("no revision follows the @; give a branch, a tag or a commit, or leave the @ out")
    return ModelName(resolve_backbone(place), revision or None)


def commit_of(name: ModelName) -> str | None:
    """The commit that a model of the hub was opened at; None of a local one."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name.place).exists():
        return None
    cached = try_to_load_from_cache(name.place, "config.json", revision=name.revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        BadInput: it holds something else, or cannot be read.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise BadInput(f"{_short(path)} holds no JSON object")
    return content


def read_list(path: Path) -> list[Any]:
    """As `read_object`, for a list."""
    content = _read(path)
    if not isinstance(content, list):
        raise BadInput(f"{_short(path)} holds no JSON list")
    return content


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{_short(path)} cannot be read ({one_line(error, 150)})") from None


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def check_files(folder: Path) -> None:
    """What a local folder's JSON files say of other files.

    Raises:
        BadInput: one of them is damaged, or leads out of the folder.
    """
    names = ("config.json", "preprocessor_config.json", "processor_config.json")
    for name in names:
        if (folder / name).is_file():
            read_object(folder / name)
    for weights in folder.glob("*.safetensors"):  # The library says "no such file" of one that may not be read.
        weights.open("rb").close()
    for index in folder.glob("*.index.json"):
        named = read_object(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise BadInput(f"{index.name} names no weights")
        for weights in named.values():
            if not isinstance(weights, str) or Path(weights).name != weights:
                raise BadInput(f"{index.name} leads out of its folder, to {weights}")
    if (folder / "adapter_config.json").is_file():
        raise BadInput("holds an adapter (adapter_config.json); merge it into its model and save that")


def check_config(config: Any) -> None:
    """What a configuration asks for.

    Raises:
        BadInput: weights from elsewhere, or more layers than any model has.
    """
    layers = getattr(config, "num_hidden_layers", None) or sum(getattr(config, "depths", None) or (0,))
    if layers > _MOST_LAYERS:
        raise BadInput(f"config.json asks for {layers} layers; {_MOST_LAYERS} is the most that is opened")
    if config.model_type == "timm_wrapper":
        elsewhere = [key for key in config.model_args or {} if key in _ELSEWHERE]
        if ":" in config.architecture or elsewhere:
            raise BadInput(f"config.json names a model elsewhere ({', '.join(elsewhere) or config.architecture})")


def forget_code(config: Any) -> None:
    """Takes out of a configuration or image processor what names Python files, so that no export hands it on."""
    for key in _CODE:
        config.__dict__.pop(key, None)
    for name in getattr(config, "sub_configs", ()):
        if hasattr(getattr(config, name, None), "__dict__"):
            forget_code(getattr(config, name))


def explain(error: Exception) -> str:
    """What a library raised on a model's files, in one line for people who cannot change our call of it."""
    text = str(error)
    if "trust_remote_code" in text:
        return "needs Python code of its own, which is never run; take a model that transformers itself implements"
    if "weights_only" in text or "Weights only" in text:
        return "its weights cannot be read without running code from them; save them as safetensors"
    return one_line(error)

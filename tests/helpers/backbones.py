"""Small random backbones in memory or in a folder, and image processors to go with them."""

from pathlib import Path
from typing import Any

import torch
import transformers as tr

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}


def vit(image_size: Any = 32, **config: Any) -> Any:
    torch.manual_seed(0)
    return tr.ViTModel(tr.ViTConfig(**VIT, image_size=image_size, **config), add_pooling_layer=False).eval()


def processor(height: int = 32, width: int = 32) -> Any:
    return tr.ViTImageProcessor(size={"height": height, "width": width})


TIMM: dict[str, dict[str, Any]] = {
    "tf_efficientnet_lite0": {},
    "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 4),
    },
}


def timm_folder(folder: Path, architecture: str, side: int = 64) -> str:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "model_args": TIMM[architecture],
        "pretrained_cfg": {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    }
    tr.TimmWrapperModel(tr.TimmWrapperConfig(architecture=architecture, **options)).save_pretrained(folder)
    return str(folder)

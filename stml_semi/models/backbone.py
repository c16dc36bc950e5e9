"""Any image backbone that transformers opens, with the image processor that defines its evaluation view."""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from stml_semi.models.trial import another
from stml_semi.runtime.errors import BadInput, one_line

EMBEDDED = Path(__file__).parent / "embedded"

# The same weights under the name of a model that does what is wanted of it. ViTMAE hides other patches at every call,
# a ViT none; the others are CLIP's vision tower, which transformers' AutoModel opens under that name alone.
_TWINS = {
    "vit_mae": "vit",
    "altclip_vision_model": "clip_vision_model",
    "clipseg_vision_model": "clip_vision_model",
    "metaclip_2_vision_model": "clip_vision_model",
}

# Where transformers does not find a vision tower by itself: below another model (CLIPSeg's), or with its layers under
# the name that AltCLIP's text tower has for them.
_TOWER_NAMES = {r"^(.*\.)?vision_model\.": "", r"^encoder\.layer\.": "encoder.layers."}


class Backbone(NamedTuple):
    """A backbone and its image processor, both ready to use in float32."""

    model: Any
    """transformers.PreTrainedModel whose forward takes pixel_values (B, 3, H, W)."""
    processor: Any
    """transformers.BaseImageProcessor: picture -> pixel_values."""


def resolve_backbone(name: str) -> str:
    """tiny-resnet is a folder inside the package; everything else stays what it is."""
    folder = EMBEDDED / name
    return str(folder) if folder.is_dir() and not Path(name).exists() else name


def open_backbone(name: str, *, flag: str = "--backbone") -> Backbone:
    """Opens a folder, a hub id (timm/... too) or an embedded backbone.

    Of models with a vision and a text tower (CLIP, SigLIP) the vision tower is taken.

    Args:
        name: what `transformers.AutoModel.from_pretrained` takes, or tiny-resnet.

    Raises:
        BadInput: not found, or not an image backbone.
    """
    from transformers import AutoConfig, AutoImageProcessor
    from transformers.models.auto.modeling_auto import MODEL_MAPPING
    from transformers.utils import logging

    path = resolve_backbone(name)
    # What transformers reports about weights that we leave out on purpose (text towers, classifiers) helps nobody,
    # nor does a progress bar over a single file that is there already.
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(path).is_dir():
        logging.disable_progress_bar()
    try:
        whole = AutoConfig.from_pretrained(path)
        config = _twin(getattr(whole, "vision_config", whole))
        model_class: Any = MODEL_MAPPING.get(type(config), None)
        if getattr(model_class, "main_input_name", None) != "pixel_values" or hasattr(config, "num_frames"):
            raise BadInput(
                f"{flag} {name}: transformers does not open '{config.model_type}' by itself as a model of single "
                f"images, so an export of it could not be opened: {another(flag)}, such as facebook/dinov2-small or "
                f"openai/clip-vit-base-patch32"
            )
        _prepare(config)
        model, lacking = _load(model_class, path, config)
        if lacking and config is not whole:
            model, lacking = _load(model_class, path, config, key_mapping=_TOWER_NAMES)
        processor = AutoImageProcessor.from_pretrained(path)
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = one_line(error)
        raise BadInput(
            f"{flag} {name}: {reason} - give a folder with config.json, model.safetensors and "
            f"preprocessor_config.json, a hub id such as facebook/dinov2-small, or tiny-resnet"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if lacking:
        raise BadInput(
            f"{flag} {name}: its file lacks {len(lacking)} of the model's weights ({lacking[0]}, ...), which would be "
            f"random: is config.json that of these weights?"
        )
    return Backbone(model.eval(), processor)


def _load(model_class: Any, path: str, config: Any, **options: Any) -> tuple[Any, list[str]]:
    """The model, and the names of the weights that its file lacks."""
    # A ViT's pooler is a layer of its masked-language ancestors: random unless it was trained, and not used here.
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False
    model, loading = model_class.from_pretrained(
        path, config=config, dtype=torch.float32, output_loading_info=True, **options
    )
    random = sorted({*loading["missing_keys"], *(str(key) for key in loading["mismatched_keys"])})
    return model, [key for key in random if not key.startswith("pooler.")]


def _twin(config: Any) -> Any:
    """The configuration of the model that can be used in its place, where there is one."""
    from transformers import AutoConfig

    if config.model_type not in _TWINS:
        return config
    twin = AutoConfig.for_model(_TWINS[config.model_type])
    known = twin.to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    return type(twin)(**{key: value for key, value in config.to_dict().items() if key in known})


def _prepare(config: Any) -> None:
    # DINOv3 rescales its rotary positions by one random factor a batch: noise that no split of a batch can repeat.
    for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    if config.model_type == "timm_wrapper":  # Maps with their channels last have to be pooled by the model itself.
        config.do_pooling = True


@torch.no_grad()
def probe(model: nn.Module, size: tuple[int, int]) -> Any:
    """The model's output on one gray picture of `size` (height, width), to learn its shapes."""
    was_training = model.training
    output = model.eval()(pixel_values=torch.zeros(1, 3, *size, device=next(model.parameters()).device))
    model.train(was_training)
    return output

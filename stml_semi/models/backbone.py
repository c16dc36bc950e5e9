"""Any image backbone that transformers opens, with the image processor that defines its evaluation view."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stml_semi.models.model_files import ModelName, check_config, check_files, explain, forget_code, parse_name
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.finite import check_weights
from stml_semi.runtime.hub import reach_hub

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
    """transformers.BaseImageProcessor: image -> pixel_values."""


def open_backbone(name: str, *, flag: str = "--backbone") -> Backbone:
    """Opens a folder, a hub id (timm/... too, each perhaps with @revision) or an embedded backbone.

    Of models with a vision and a text tower (CLIP, SigLIP) the vision tower is taken. No code of the model is run.

    Args:
        name: what `transformers.AutoModel.from_pretrained` takes, or tiny-resnet.
        flag: what the user named it with.

    Raises:
        BadInput: not found, not an image backbone, or with weights that are not finite.
    """
    try:
        found = parse_name(name)
        with _quiet(found.place):
            model, processor = _open(found)
    except Exception as error:  # There is no end to what its libraries raise of a damaged or hostile folder.
        raise BadInput(
            f"{flag} {name}: {explain(error)} - give a folder with config.json, model.safetensors and "
            f"preprocessor_config.json, a hub id such as facebook/dinov2-small, or tiny-resnet"
        ) from error
    check_weights(
        model, f"{flag} {name}", "its file is damaged, or the model diverged; take another checkpoint or model"
    )
    return Backbone(model.eval(), processor)


def _open(name: ModelName) -> Backbone:
    from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if Path(name.place).is_dir():
        check_files(Path(name.place))
    else:
        reach_hub()
    # By default transformers asks on the terminal whether to run a model's code, and takes a piped "y" for consent.
    source: dict[str, Any] = {"revision": name.revision or "main", "trust_remote_code": False}
    whole = AutoConfig.from_pretrained(name.place, **source)
    vision = getattr(whole, "vision_config", None)
    config = vision if isinstance(vision, PreTrainedConfig) else whole
    check_config(config)
    config = _twin(config)
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    if getattr(model_class, "main_input_name", None) != "pixel_values" or hasattr(config, "num_frames"):
        raise BadInput(
            f"transformers does not open '{config.model_type}' by itself as a model of single images, so an export of "
            f"it could not be opened"
        )
    _prepare(config)
    model, random = _load(model_class, name.place, config, **source)
    if random and config is not whole:
        model, random = _load(model_class, name.place, config, key_mapping=_TOWER_NAMES, **source)
    if random:
        raise BadInput(
            f"its file lacks {len(random)} of the model's weights or has them in another shape ({random[0]}, ...), so "
            f"they would be random: is config.json that of these weights?"
        )
    processor = AutoImageProcessor.from_pretrained(name.place, **source)
    forget_code(model.config)
    forget_code(processor)
    return Backbone(model, processor)


def _load(model_class: Any, place: str, config: Any, **options: Any) -> tuple[Any, list[str]]:
    """The model, and the names of those of its weights that its file does not give."""
    # A ViT's pooler is a layer of its masked-language ancestors: random unless it was trained, and not used here.
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False
    model, loading = model_class.from_pretrained(
        place,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        weights_only=True,
        ignore_mismatched_sizes=True,  # Refused by our caller, by name.
        **options,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise BadInput("holds an adapter (adapter_config.json); merge it into its model and save that")
    random = {*map(str, loading["missing_keys"]), *(str(key[0]) for key in loading["mismatched_keys"])}
    return model, sorted(key for key in random if not key.startswith("pooler."))


@contextmanager
def _quiet(place: str) -> Iterator[None]:
    """What transformers reports about weights that we leave out on purpose (text towers, classifiers) helps nobody, nor
    does a progress bar over a single file that is there already."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(place).is_dir():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _twin(config: Any) -> Any:
    """The configuration of the model that can be used in its place, where there is one."""
    from transformers import AutoConfig

    if config.model_type not in _TWINS:
        return config
    twin = AutoConfig.for_model(_TWINS[config.model_type])
    known = twin.to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    return type(twin)(**{key: value for key, value in config.to_dict().items() if key in known})


def _prepare(config: Any) -> None:
    """Switches off what a file should not decide, or what makes features random."""
    config._attn_implementation = None  # Some values in config.json fetch compiled kernels from the hub.
    # DINOv3 rescales its rotary positions by one random factor a batch: noise that no split of a batch can repeat.
    for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    if config.model_type == "timm_wrapper":  # Maps with their channels last have to be pooled by the model itself.
        config.do_pooling = True

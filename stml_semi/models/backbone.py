"""Any image backbone that transformers opens, with the image processor that defines its evaluation view."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stml_semi.data.views import eval_view
from stml_semi.models.model_files import ModelName, check_config, check_files, explain, forget_code, parse_name
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.finite import check_weights


class Backbone(NamedTuple):
    """A backbone and its image processor, both ready to use in float32."""

    model: Any
    """transformers.PreTrainedModel whose forward takes pixel_values (B, 3, H, W)."""
    processor: Any
    """transformers.BaseImageProcessor: picture -> pixel_values."""


def open_backbone(name: str, *, image_size: int | None = None, flag: str = "--backbone") -> Backbone:
    """Opens a folder, a hub id (timm/... too, each perhaps with @revision) or an embedded backbone.

    Of models with a vision and a text tower (CLIP, SigLIP) the vision tower is taken. No code of the model is run.

    Args:
        name: what `transformers.AutoModel.from_pretrained` takes, or tiny-resnet.
        image_size: side of the input in pixels; position embeddings are resampled where they depend on it.

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
    if image_size is not None:
        model, processor = resize(model, processor, image_size)
    _try_out(processor, f"{flag} {name}")
    return Backbone(model.eval(), processor)


def _open(name: ModelName) -> Backbone:
    from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if Path(name.place).is_dir():
        check_files(Path(name.place))
    # By default transformers asks on the terminal whether to run a model's code, and takes a piped "y" for consent.
    source: dict[str, Any] = {"revision": name.revision or "main", "trust_remote_code": False}
    config = AutoConfig.from_pretrained(name.place, **source)
    vision = getattr(config, "vision_config", None)
    config = vision if isinstance(vision, PreTrainedConfig) else config
    check_config(config)
    if type(config) not in MODEL_MAPPING:
        raise BadInput(f"transformers has no AutoModel for '{config.model_type}'")
    model_class: Any = MODEL_MAPPING[type(config)]
    if model_class.main_input_name != "pixel_values":
        raise BadInput(f"'{config.model_type}' does not take images")
    # A ViT's pooler is a layer of its masked-language ancestors: random unless it was trained, and not used here.
    options = (
        {"add_pooling_layer": False}
        if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        else {}
    )
    _switch_off_batch_noise(config)
    config._attn_implementation = None  # Some values in config.json fetch compiled kernels from the hub.
    model, loading = model_class.from_pretrained(
        name.place,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        weights_only=True,
        ignore_mismatched_sizes=True,  # Refused below, by name.
        **source,
        **options,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise BadInput("holds an adapter (adapter_config.json); merge it into its model and save that")
    _check_weights(loading)
    processor = AutoImageProcessor.from_pretrained(name.place, **source)
    forget_code(model.config)
    forget_code(processor)
    return Backbone(model, processor)


def _check_weights(loading: dict[str, Any]) -> None:
    """
    Raises:
        BadInput: some of the model's weights would be random.
    """
    missing = [str(key) for key in loading["missing_keys"]]
    other = [str(key[0]) for key in loading["mismatched_keys"]]
    used = sorted(key for key in {*missing, *other} if not key.startswith("pooler."))
    if used:
        problem = "has another shape for" if used[0] in other else "lacks"
        raise BadInput(
            f"its file {problem} {len(used)} of the model's weights ({used[0]}, ...), which would be random: is "
            f"config.json that of these weights?"
        )


def _try_out(processor: Any, what: str) -> None:
    """
    Raises:
        BadInput: the image processor does not process images.
    """
    try:
        eval_view(Image.new("RGB", (64, 64)), processor)
    except BadInput:
        raise
    except Exception as error:  # It calls what its file says.
        raise BadInput(
            f"{what}: its preprocessor_config.json makes nothing of an image ({explain(error)}); give a model with one "
            f"that works"
        ) from error


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


def _switch_off_batch_noise(config: Any) -> None:
    """DINOv3 rescales its rotary positions by one random factor a batch: noise that no split of a batch can repeat."""
    for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def resize(model: Any, processor: Any, image_size: int) -> Backbone:
    """The same backbone for another input size, saved as such: whoever opens the export needs no extra argument."""
    if model.config.model_type == "timm_wrapper":
        raise BadInput("--image-size: timm backbones keep their size; take an id that was trained at the size you want")
    processor = type(processor).from_dict({**processor.to_dict(), **_scaled_sizes(processor, image_size)})
    if getattr(model.config, "image_size", None) not in (None, image_size):
        native = model.state_dict()
        model.config.image_size = image_size
        options = {"add_pooling_layer": False} if getattr(model, "pooler", 0) is None else {}
        resized = type(model)(model.config, **options)
        wanted = resized.state_dict()
        for key, value in native.items():
            if key in wanted and wanted[key].shape != value.shape:
                native[key] = _resample_positions(value, wanted[key].shape)
        resized.load_state_dict(native)
        model = resized
    return Backbone(model, processor)


def _scaled_sizes(processor: Any, image_size: int) -> dict[str, dict[str, int]]:
    """size and crop_size for another output, the share that the crop leaves out (256 -> 224, say) unchanged."""
    fields = {}
    for name in ("size", "crop_size"):
        size = getattr(processor, name, None)
        if size:
            fields[name] = {key: value for key, value in dict(size).items() if value is not None}
    cropped = fields.get("crop_size") if getattr(processor, "do_center_crop", False) else None
    scale = image_size / max((cropped or fields["size"]).values())
    return {name: {key: round(value * scale) for key, value in size.items()} for name, size in fields.items()}


def _resample_positions(positions: Tensor, shape: torch.Size) -> Tensor:
    """Bicubic resampling of a grid of position embeddings (..., prefix + h^2, d); class tokens stay as they are."""
    old, new = positions.shape[-2], shape[-2]
    old_side, new_side = int(old**0.5), int(new**0.5)
    prefix = old - old_side**2
    if new - new_side**2 != prefix or positions.shape[-1] != shape[-1]:
        raise BadInput("--image-size: this backbone's positions do not resample; leave --image-size out")
    flat = positions.reshape(old, -1)
    grid = flat[prefix:].T.reshape(1, -1, old_side, old_side)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([flat[:prefix], grid.reshape(-1, new_side**2).T]).reshape(shape)


@torch.no_grad()
def probe(model: nn.Module, size: tuple[int, int]) -> Any:
    """The model's output on one gray picture of `size` (height, width), to learn its shapes.

    Raises:
        BadInput: it does not take such a picture.
    """
    was_training = model.training
    pixels = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    try:
        output = model.eval()(pixel_values=pixels)
    except Exception as error:  # Whatever its layers raise.
        raise BadInput(
            f"the backbone does not take the {size[0]} x {size[1]} pixels that its image processor makes "
            f"({one_line(error, 150)}): is preprocessor_config.json that of these weights?"
        ) from error
    model.train(was_training)
    return output

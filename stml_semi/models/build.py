"""The model of a configuration."""

from stml_semi.config import TrainConfig
from stml_semi.data.views import normalization, view_size
from stml_semi.models.adaptation import add_lora, checkpoint_blocks, freeze_prefix
from stml_semi.models.backbone import Backbone, open_backbone
from stml_semi.models.embedder import Embedder, freeze_unused
from stml_semi.models.fit import fit_images
from stml_semi.models.image_size import resize
from stml_semi.models.model_files import commit_of, parse_name
from stml_semi.models.pooling import resolve_pooling
from stml_semi.models.resnet_weights import open_resnet50
from stml_semi.runtime.errors import BadInput


def open_configured_backbone(config: TrainConfig) -> Backbone:
    """
    Raises:
        BadInput: naming the flag and the fix.
    """
    weights = config.backbone_weights
    backbone = open_resnet50(weights) if weights else open_backbone(config.backbone)
    return fit_images(backbone if config.image_size is None else resize(backbone, config.image_size), config.fit)


def backbone_commit(config: TrainConfig) -> str | None:
    """The commit of the hub that the backbone was opened at; None of one that is not of the hub."""
    return None if config.backbone_weights else commit_of(parse_name(config.backbone))


def build_embedder(config: TrainConfig, backbone: Backbone) -> Embedder:
    """The model of a configuration; its heads are random (torch's generator), so seed before.

    Raises:
        BadInput: a pooling, or a way to train it, that the backbone cannot do.
    """
    size = view_size(backbone.processor)
    freeze_prefix(backbone.model, config.train_layers)
    if config.lora_rank:
        add_lora(backbone.model, config.lora_rank)
    if config.gradient_checkpointing:
        checkpoint_blocks(backbone.model)
    embedder = Embedder(
        backbone.model,
        resolve_pooling(config.pooling, backbone.model, size),
        normalization(backbone.processor),
        embedding_dim=config.embedding_dim,
        auxiliary_dim=config.auxiliary_dim,
        micro_batch_size=config.micro_batch_size,
        batch_statistics=config.batchnorm == "batch",
    )
    freeze_unused(embedder, size)
    if config.compile and embedder.is_random:
        raise BadInput(
            "--compile: this backbone uses dropout or stochastic depth, whose draws are not compiled; leave it out"
        )
    return embedder

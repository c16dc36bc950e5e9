"""Models as an export writes them, without a run."""

import torch

from stml_semi.data.views import normalization, view_size
from stml_semi.models.backbone import open_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.models.pooling import resolve_pooling
from stml_semi.sharing.export import export_model


def exported(folder, kind_folder, pooling):
    torch.manual_seed(0)
    model, processor = open_backbone(str(kind_folder))
    pool = resolve_pooling(pooling, model, view_size(processor))
    embedder = Embedder(model, pool, normalization(processor), embedding_dim=7, auxiliary_dim=9).eval()
    torch.nn.init.normal_(embedder.head_f.bias)
    export_model(embedder, processor, folder)
    return embedder, processor

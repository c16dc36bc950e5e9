"""What a refresh of the pool finds out: whose company an image is drawn in, and what relations compare."""

import math

import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.batches.plan import Rows
from stml_semi.data.batches.pool import Neighborhoods
from stml_semi.losses.neighborhoods import rerank
from stml_semi.losses.relations import calibrated_sigma
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime import distributed


def find_neighborhoods(config: TrainConfig, rows: Rows, embeddings: Tensor, refresh: int) -> Neighborhoods:
    """Neighborhoods of the pool's images; each process searches for its share, and all get the whole.

    Args:
        config: of the run.
        rows: (P,) of the unlabeled table, live now.
        embeddings: (P, e): the teacher's g of them.
        refresh: how many refreshes came before.
    """
    total = len(rows)
    every = torch.arange(total, device=embeddings.device)
    share = distributed.share(total, rank=distributed.rank(), world_size=distributed.world_size())
    sigma = calibrated_sigma(embeddings, seed=refresh) if config.sigma == "auto" else config.sigma
    pooled = config.relations == "pool"
    wanted = max(config.pool_neighbors, config.num_neighbors) if pooled else config.num_neighbors
    k = min(wanted, total) - 1
    nearest = every.new_empty(total, 0)
    if k:
        found = nearest_neighbors(embeddings, k, queries=embeddings[share], exclude=every[share])
        nearest = distributed.gather(found.indices, total)
    if not pooled:
        return Neighborhoods(rows, nearest, nearest[:, :0], sigma)
    compared = torch.cat([every[:, None], nearest], 1)
    likest = distributed.gather(rerank(compared, expand=config.num_neighbors, rows=every[share]), total)
    # The likelier half: drawn at random, a query's companions change from round to round.
    return Neighborhoods(rows, likest[:, : max(k // 2, config.num_neighbors - 1)], compared, sigma)


def most_relevant(embeddings: Tensor, domain: Tensor, *, share: float) -> Tensor:
    """Which images of a pool are nearest to the labeled ones.

    Args:
        embeddings: (P, e) of the pool.
        domain: (L, e) of labeled images.
        share: of the pool that stays, 0..1.

    Returns:
        (ceil(share x P),) rising positions of the images whose nearest labeled image is nearest, by cosine.
    """
    nearest = nearest_neighbors(domain, 1, queries=embeddings).similarities[:, 0]
    kept = nearest.argsort(descending=True, stable=True)[: math.ceil(share * len(embeddings))]
    return kept.sort().values

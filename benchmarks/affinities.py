"""How affinities distribute for backbones of every kind, before any training: what a fixed bandwidth sees, and auto.

    python benchmarks/affinities.py                       # the 440 labeled kanji; labels only judge
    python benchmarks/affinities.py --data birds --backbones facebook/dinov2-small,facebook/dino-vits16

`random-...` are backbones without pretraining, made here: what the least able teacher sees. An affinity above 0.5 says
that two images are of one class; precision is how often that is right, recall how many such pairs are found. d² is
the squared distance of the median pair, P its similarity; "batch" takes all the images for one batch.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.sources.open_source import open_source
from stml_semi.losses.distances import normalize, pairwise_squared_distances
from stml_semi.losses.neighborhoods import neighborhood_overlap
from stml_semi.losses.relations import calibrated_sigma, contextual_affinity, pooled_affinity
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.models.evaluation import embed_table
from stml_semi.run_folder.recipe import build_config
from stml_semi.training.health import agreement, spread
from stml_semi.training.neighborhoods import find_neighborhoods

DEFAULT = "tiny-resnet,random-tiny-resnet,random-resnet18,random-vit,random-dinov2"
PUBLISHED = 3.0


def backbone_of(name: str, folder: Path) -> str:
    """What --backbone takes; those called random are written to the folder."""
    if not name.startswith("random-"):
        return name
    import transformers as tr

    size = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    small: dict[str, Any] = {**size, "image_size": 64, "patch_size": 8}
    own = Path(__file__).parents[1] / "stml_semi" / "models" / "embedded" / "tiny-resnet"
    configs = {
        "random-tiny-resnet": lambda: tr.AutoConfig.from_pretrained(own),
        "random-resnet18": lambda: tr.ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]
        ),
        "random-vit": lambda: tr.ViTConfig(**small),
        "random-dinov2": lambda: tr.Dinov2Config(**small),
    }
    torch.manual_seed(0)
    tr.AutoModel.from_config(configs[name]()).save_pretrained(folder / name)
    tr.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / name)
    return str(folder / name)


def affinities(config: TrainConfig, embeddings: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Ways of relating images -> (N, N) affinity of all of them."""
    index = torch.arange(len(embeddings))
    auto, topk = calibrated_sigma(embeddings, seed=0), config.num_neighbors * config.num_views
    yield "batch, sigma 3", contextual_affinity(embeddings, index, sigma=PUBLISHED, topk=topk).affinity
    yield "batch, auto", contextual_affinity(embeddings, index, sigma=auto, topk=topk).affinity
    found = find_neighborhoods(config, np.arange(len(embeddings)), embeddings, 0)
    overlap = neighborhood_overlap(found.compared, index, expand=config.num_neighbors)
    yield "pool, sigma 3", pooled_affinity(embeddings, overlap, sigma=PUBLISHED)
    yield "pool, auto", pooled_affinity(embeddings, overlap, sigma=found.sigma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="kanji:train", help="labeled images")
    parser.add_argument("--backbones", default=DEFAULT, help="joined by commas")
    options = parser.parse_args()
    table = open_source(options.data, flag="--data", labels="required")
    assert table.labels is not None
    labels = torch.from_numpy(table.labels)
    print("| backbone | median d² | P at sigma 3 | sigma auto | relations | W: median | 99% | precision | recall |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.backbones.split(","):
            torch.manual_seed(0)
            config = build_config({"unlabeled": options.data, "backbone": backbone_of(name, Path(folder))})
            backbone = open_configured_backbone(config)
            embedder = build_embedder(config, backbone).eval()
            embeddings = embed_table(
                table, lambda pixels, embedder=embedder: embedder(pixels).g, backbone.processor, num_workers=0
            ).embeddings
            others = ~torch.eye(len(labels), dtype=torch.bool)
            median = pairwise_squared_distances(normalize(embeddings))[others].median().item()
            sigma = calibrated_sigma(embeddings, seed=0)
            facts = f"{name} | {median:.3f} | {np.exp(-median / PUBLISHED):.2f} | {sigma:.3f}"
            for way, affinity in affinities(config, embeddings):
                quantiles = spread(embeddings, affinity)
                judged = agreement(affinity, torch.arange(len(labels)), labels)
                cells = [f"{quantiles[f'affinity_p{q}']:.2f}" for q in (50, 99)]
                cells += [f"{100 * judged.get(f'affinity_{kind}', np.nan):.0f}%" for kind in ("precision", "recall")]
                print(f"| {facts} | {way} | {' | '.join(cells)} |", flush=True)
                facts = "| | |"


if __name__ == "__main__":
    main()

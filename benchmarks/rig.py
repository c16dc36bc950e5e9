"""A training step in its parts, with a random model, to be timed."""

from collections.abc import Callable
from typing import Any

import torch
from published_way import SIGMA, published_ema, published_stml
from timing import Clock, Setting
from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.data.views import Normalization
from stml_semi.models.embedder import Embedder
from stml_semi.models.pooling import resolve_pooling
from stml_semi.models.teacher import Teacher
from stml_semi.training.objective import Labeled, Objective, Unlabeled
from stml_semi.training.optimizer import make_optimizer

STUDENT, TEACHER, LOSSES, BACKWARD, OPTIMIZER, EMA = PARTS = (
    "student forward",
    "teacher forward",
    "relations, losses, balance",
    "student backward",
    "optimizer",
    "EMA of the teacher",
)
BARE, OURS, PUBLISHED, OTHER = "bare passes", "this project", "published way", "other precision"
NUM_CLASSES = 100  # Proxies of the labeled term, as many as CUB has.
HEAD_F, HEAD_G = 512, 1024


def random_embedder(model: str, size: int, *, patch: int = 16, micro_batch_size: int | None = None) -> Embedder:
    """An embedder whose backbone has random weights (resnet18, resnet50, vit-small), or is opened by name."""
    import transformers as tr

    torch.manual_seed(0)
    if model == "resnet18":
        shape: dict[str, Any] = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
        backbone: Any = tr.ResNetModel(tr.ResNetConfig(**shape, layer_type="basic"))
    elif model == "resnet50":
        backbone = tr.ResNetModel(tr.ResNetConfig())
    elif model == "vit-small":
        shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
        config = tr.ViTConfig(**shape, image_size=size, patch_size=patch)
        backbone = tr.ViTModel(config, add_pooling_layer=False)
    else:
        from stml_semi.models.backbone import open_backbone
        from stml_semi.models.image_size import resize

        backbone = resize(open_backbone(model, flag="--model"), size).model
    return Embedder(
        backbone,
        resolve_pooling("auto", backbone, (size, size)),
        Normalization(torch.full((3,), 0.45), torch.full((3,), 0.25)),
        embedding_dim=HEAD_F,
        auxiliary_dim=HEAD_G,
        micro_batch_size=micro_batch_size,
    )


class Rig:
    """Model, teacher, objective and optimizer of a run, and one batch of random pixels."""

    def __init__(self, setting: Setting, *, published: bool) -> None:
        config = TrainConfig(
            labeled="labeled", unlabeled="unlabeled", unlabeled_batch_size=setting.unlabeled, embedding_dim=HEAD_F
        )
        self.config, self.setting, self.published = config, setting, published
        self.embedder = random_embedder(setting.model, setting.size).to(setting.device).train()
        self.teacher = Teacher(self.embedder, momentum=config.momentum)
        self.objective = Objective(config, num_classes=NUM_CLASSES).to(setting.device)
        self.proxies = list(self.objective.parameters())
        self.optimizer = make_optimizer(config, self.embedder, self.proxies)
        if published:
            groups = [
                {key: group[key] for key in ("params", "lr", "weight_decay")} for group in self.optimizer.param_groups
            ]
            self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
        elif setting.compile:
            self.embedder.compile()
            self.teacher.model.compile()
        generator = torch.Generator().manual_seed(0)
        rows, size = setting.labeled + config.num_views * setting.unlabeled, setting.size
        pixels = torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)
        self.pixels = pixels.to(setting.device)
        self.labels = (torch.arange(setting.labeled) // config.images_per_class).to(setting.device)
        self.index = torch.arange(setting.unlabeled, device=setting.device).repeat(config.num_views)
        # What the bare backward pass starts from: any numbers will do.
        self.upstream = [torch.ones(rows, width, device=setting.device) / rows for width in (HEAD_F, HEAD_G)]

    def bare(self, clock: Clock) -> None:
        """Student forward and backward, teacher forward: what no way of training could leave out."""
        f, g, _ = self._forward(clock, self.setting.bf16)
        torch.autograd.backward([f, g], self.upstream)
        clock.lap(BACKWARD)
        self.embedder.zero_grad(set_to_none=True)

    def step(self, clock: Clock, *, bf16: bool | None = None) -> None:
        """One training step, as in the trainer."""
        f, g, target = self._forward(clock, self.setting.bf16 if bf16 is None else bf16)
        losses = self._published_losses if self.published else self._losses
        backward = losses(f, g, target)
        clock.lap(LOSSES)
        backward()
        clock.lap(BACKWARD)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.lap(OPTIMIZER)
        if self.published:
            published_ema(self.teacher.model, self.embedder, self.config.momentum)
        else:
            self.teacher.update(self.embedder)
        clock.lap(EMA)

    def _forward(self, clock: Clock, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(torch.device(self.setting.device).type, torch.bfloat16, enabled=bf16):
            student = self.embedder(self.pixels)
            f, g = student.f.float(), student.g.float()
            clock.lap(STUDENT)
            target = self.teacher(self.pixels[self.setting.labeled :]).g.float()
            clock.lap(TEACHER)
        return f, g, target

    def _losses(self, f: Tensor, g: Tensor, target: Tensor) -> Callable[[], None]:
        labeled = self.setting.labeled
        terms = self.objective(
            Labeled(f[:labeled], self.labels), Unlabeled(f[labeled:], g[labeled:], target, self.index, SIGMA)
        )
        return terms.surrogate.backward

    def _published_losses(self, f: Tensor, g: Tensor, target: Tensor) -> Callable[[], None]:
        """Plain sum of the terms. Differentiated down to the embeddings first, only to tell the parts apart."""
        config, labeled = self.config, self.setting.labeled
        assert self.objective.labeled_loss is not None
        value = self.objective.labeled_loss(f[:labeled], self.labels) + published_stml(
            f[labeled:], g[labeled:], target, self.index, config
        )
        upstream = torch.autograd.grad(value, [f, g, *self.proxies])
        for proxy, gradient in zip(self.proxies, upstream[2:], strict=True):
            proxy.grad = gradient
        return lambda: torch.autograd.backward([f, g], upstream[:2])


# ---------------------------------------------------------------------------- the published way

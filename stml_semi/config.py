"""TrainConfig: the one definition of every knob.

A field here is the command-line flag, the recipe key, the line in `--help` and the line in config.yaml. What else is
known of it (its panel, whether a resumed run may change it, whether it names something private) is part of its type.
"""

import re
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

T = TypeVar("T")


class Mark(Enum):
    """What the rest of the program has to know of a field; a type may carry several."""

    SOURCE = "names images; a comma joins several sources"
    PLACE = "may name a file or folder of this machine"
    ADJUSTABLE = "a resumed run may change it: how long and how often, how much at once, where; not what is computed"
    UNPUBLISHED = "says nothing about the model: cards and recipes for others leave it out"
    START = "how a run is started, which is no part of what it is"


# The panel of `--help` in which a field is listed.
Data = Annotated[T, "Data"]
Model = Annotated[T, "Model"]
Objective = Annotated[T, "Objective"]
Optimization = Annotated[T, "Optimization"]
Hardware = Annotated[T, "Hardware"]
Run = Annotated[T, "Run"]
Source = Annotated[T, Mark.SOURCE, Mark.PLACE]
Place = Annotated[T, Mark.PLACE]
Adjustable = Annotated[T, Mark.ADJUSTABLE]
Unpublished = Annotated[T, Mark.UNPUBLISHED]
Start = Annotated[T, Mark.START, Mark.ADJUSTABLE, Mark.UNPUBLISHED]

Command = Literal["semi", "unsup", "sup"]
Augmentation = Literal["auto", "paper", "strong", "glyph", "none"]
PoolingKind = Literal["auto", "cls", "mean", "mean_max", "pooler"]
Fit = Literal["auto", "crop", "pad", "squash"]
Balance = Literal["unit", "ratio", "fixed"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["no", "bf16", "fp16"]
RelationsScope = Literal["pool", "batch"]
CacheImages = Literal["none", "raw", "jpeg"]
OnBadImage = Literal["replace", "error"]
BatchNorm = Literal["frozen", "batch"]
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(BaseModel):
    """Everything that defines a run. Batch sizes are global: they do not depend on the number of processes."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    labeled: Data[Source[str | None]] = None
    """Labeled images: a benchmark (kanji, cub), a folder of class folders, a csv/jsonl/parquet file or a hub id,
    `name[:split]`; a comma joins several."""
    unlabeled: Data[Source[str | None]] = None
    """Unlabeled images: like --labeled, but any folder will do and no label column is read. Weights make a mixture:
    `inat=0.7,photos/=0.3`."""
    unlabeled_stream: Data[bool] = False
    """Read tar shards, parquet and jsonl files, and hub ids of --unlabeled as streams: each refresh takes the next
    pool_size images, and no more than those are kept."""
    allow_urls: Data[bool] = False
    """Open http(s) addresses in the paths of --unlabeled-stream: up to 64 MiB and 60 seconds each. Without it, paths
    open files below the stream's folder and the hub's storage."""
    eval: Data[Source[str | None]] = None
    """Labeled images to evaluate on, of classes that are never trained on. Default: the benchmark's test split."""
    test_classes: Data[Annotated[float, Field(gt=0, lt=1)] | None] = None
    """Share of the classes of --labeled to keep for evaluation in place of --eval, drawn by --seed; they are listed in
    test_classes.json of the run."""
    validation_classes: Data[Annotated[float, Field(gt=0, lt=1)] | None] = None
    """Share of the classes of --labeled to keep out of training and to choose by: of all evaluated steps, the one with
    the best MAP@R on them is exported, or if clearly better the teacher, the frozen backbone or weights in between.
    What is tested on is then looked at once, at the end."""
    labeled_image_column: Data[str | None] = None
    """Column of --labeled that holds the images or their paths. Two, as in left,right, are pairs of the same thing:
    classes are what they connect. Default: found by type and name."""
    labeled_label_column: Data[str | None] = None
    """Column of --labeled that holds the class; of pairs, 1 or 0: the same thing or not. Default: found by type and
    name."""
    unlabeled_label_column: Data[str | None] = None
    """Column of --unlabeled that holds the class, where it is known: metrics.jsonl then says how far the teacher's
    relations are right (affinity_precision, affinity_recall). Nothing is trained on it. Default: none is read."""
    unlabeled_image_column: Data[str | None] = None
    """Column of --unlabeled that holds the images or their paths. Default: found by type and name."""
    eval_image_column: Data[str | None] = None
    """Column of --eval that holds the images or their paths. Default: found by type and name."""
    eval_label_column: Data[str | None] = None
    """Column of --eval that holds the class. Default: found by type and name."""
    data_root: Data[Adjustable[Place[str | None]]] = None
    """Folder of the benchmarks (cub, cars, sop, ...): prepared tables or extracted archives. Default: $STML_DATA."""
    augment: Data[Augmentation] = "auto"
    """Random views for training: paper (crop and flip), strong (paper, color and blur), glyph (small affine, no
    flip)."""
    on_bad_image: Data[OnBadImage] = "replace"
    """An image that cannot be read: replace takes another one in its place and lists it, error ends the run."""
    max_bad_fraction: Data[Share] = 0.01
    """Share of all images that may be bad before the run ends; a single one never ends it."""
    relevance: Data[Annotated[float, Field(gt=0, le=1)]] = 1.0
    """Share of the drawn unlabeled images that stays in the pool: those nearest to the labeled ones, by the teacher."""
    cache_images: Data[CacheImages] = "none"
    """Decode training images once and keep them in the cache of datasets: raw (pixels, fastest, 0.5 to 0.8 MB each at
    224 px) or jpeg (larger images made smaller). Evaluation reads the originals."""
    cache_side: Data[Annotated[int, Field(ge=8)] | None] = None
    """Shorter side in pixels to which --cache-images makes larger images smaller. Default: twice the input; then views
    of images up to that size are the same as without a cache."""
    exclude_overlap: Data[bool] = False
    """Drop unlabeled images of classes that are evaluated on (where classes have names), and near-duplicates of
    evaluated images; they are listed in overlap.jsonl of the run."""
    image_size: Data[Annotated[int, Field(ge=8)] | None] = None
    """Side of the square input in pixels. Default: what the backbone's image processor says."""
    fit: Data[Fit] = "auto"
    """What becomes of images of another shape, in evaluation and in the exported model: crop keeps their middle, pad
    all of them between black bars, squash distorts them. Default: what the backbone's image processor does."""

    backbone: Model[Place[str]] = "auto"
    """Any image backbone that transformers.AutoModel opens: folder, hub id, timm/... id, tiny-resnet.
    Default: the benchmark's, else facebook/dinov2-small."""
    backbone_weights: Model[Place[str | None]] = None
    """A ResNet-50 checkpoint in torchvision's layout (torchvision, SwAV, MoCo, DINO; .pth or .safetensors), in place of
    --backbone."""
    pooling: Model[PoolingKind] = "auto"
    """How a feature map becomes a vector: auto is mean_max (GAP + GMP) for convolutions, cls where there is a class
    token, else mean."""
    embedding_dim: Model[Count] = 512
    """Width of f, the retrieval head: the embedding that is served."""
    auxiliary_dim: Model[Count] = 1024
    """Width of g, the auxiliary head: teaches f during training, then dropped."""

    train_layers: Model[Annotated[str, Field(pattern=r"^(all|last:\d+)$")]] = "all"
    """Which blocks of the backbone train: all, or last:N; last:0 trains the heads alone."""
    lora_rank: Model[CountOrZero] = 0
    """Train updates of this rank (LoRA) in place of a ViT's own weights; merged into them on export. 0: none."""
    batchnorm: Model[BatchNorm] = "frozen"
    """Statistics of BatchNorm: frozen keeps the pretrained ones; batch takes those of each process's batch, so that
    results depend on the number of processes."""

    labeled_loss: Objective[str] = "proxy_anchor"
    """Loss on the labels, from pytorch-metric-learning: proxy_anchor, proxy_nca, softtriple, arcface, cosface,
    multi_similarity, ..."""
    labeled_batch_size: Objective[Count] = 64
    """Labeled images per step, over all processes. Default: 64, or less for few classes."""
    images_per_class: Objective[Count] = 4
    """Images of each class in a labeled batch; labeled_batch_size / images_per_class classes are drawn per step.
    Default: 4, or more if a given --labeled-batch-size needs more than there are classes."""
    unlabeled_batch_size: Objective[Count] = 120
    """Unlabeled images per step, over all processes, before views: queries x num_neighbors. Default: 120, or less for
    few images."""
    num_neighbors: Objective[Count] = 5
    """Size of a neighborhood, the image itself included: k of the paper. Default: 5, or all of fewer images."""
    num_views: Objective[Annotated[int, Field(ge=1, le=8)]] = 2
    """Random views of every unlabeled image."""
    relations: Objective[RelationsScope] = "pool"
    """Where neighborhoods are compared to tell which images belong together: pool (all live unlabeled images; in
    `semi`, labeled classes that the warm-up leaves out measure how right that is) or batch, as published."""
    pool_neighbors: Objective[Annotated[int, Field(ge=2)]] = 20
    """Size of the neighborhoods that --relations pool compares, the image itself included."""
    sigma: Objective[Positive | Literal["auto"]] = "auto"
    """Bandwidth of pairwise similarity, exp(-squared distance / sigma): a number (published: 3), or auto, which gives
    an average pair of the pool a similarity of 0.05 at every refresh. Not used where labels calibrate the relations."""
    delta: Objective[Positive] = 1.0
    """Margin of the relaxed contrastive loss, in mean distances."""
    momentum: Objective[Share] = 0.995
    """Momentum of the teacher, an exponential moving average of the student."""
    balance: Objective[Balance] = "unit"
    """What unlabeled_weight multiplies: unit (both terms at unit gradient norm), ratio (the labeled term's gradient
    norm), fixed (the bare loss, as published)."""
    unlabeled_weight: Objective[NotNegative] = 1.0
    """How strongly the unlabeled term pulls; its meaning is set by --balance. Where labels calibrate the relations, it
    is multiplied by how right these are (trust in metrics.jsonl)."""
    label_warmup_steps: Objective[CountOrZero | None] = None
    """First steps on labels alone; some of the classes join after them. Default: 10% of max_steps; unsup has
    none."""

    learning_rate: Optimization[Positive | Literal["auto"]] = "auto"
    """Peak learning rate of AdamW for backbone and heads: a number, or auto, which follows from what trains: 1e-5 for a
    transformer, 3e-5 for its last blocks, 1e-4 for a convolutional network or LoRA, 1e-3 for the heads alone. In `semi`
    it is the rate at full trust in the unlabeled images; 1e-3 for a convolutional network, if trust is measured."""
    label_learning_rate: Optimization[Positive | Literal["auto"]] = "auto"
    """Of `semi`: the peak rate where labels alone decide, in the label warm-up and where trust is zero; with trust the
    rate rises to learning_rate, which is not lower. auto: what auto gives `sup`."""
    proxy_lr_scale: Optimization[Positive] = 100.0
    """Learning rate of the proxies, as a multiple of learning_rate."""
    layer_decay: Optimization[Annotated[float, Field(gt=0, le=1)]] = 1.0
    """Factor on the learning rate from each block to the one before it; 1 trains all blocks alike, ViTs like 0.75."""
    weight_decay: Optimization[NotNegative] = 1e-4
    """Weight decay; norms, biases and proxies have none."""
    lr_schedule: Optimization[Schedule] = "cosine"
    """How the learning rate falls to zero over the run."""
    lr_warmup_steps: Optimization[CountOrZero] = 0
    """Steps over which the learning rate rises to its peak."""
    max_steps: Optimization[Adjustable[Count]] = 2000
    """Optimizer steps of the whole run. Default: 30 epochs of the unlabeled or 100 of the labeled images, whichever
    takes longer, at least 300 and at most 2000 steps."""
    refresh_every: Optimization[Count] = 100
    """Steps between refreshes of the unlabeled pool and its neighbor table."""
    pool_size: Optimization[Count] = 16384
    """Unlabeled images that a refresh embeds. Of a larger table the others stay as they were embedded before; of a
    stream, or a mixture with weights, these alone are live."""

    micro_batch_size: Hardware[Adjustable[Count | None]] = None
    """Most images in one forward part, per process: bounds memory, changes no result. Default: the whole batch at
    once."""
    gradient_checkpointing: Hardware[Adjustable[bool]] = False
    """Compute the inside of each block again in the backward pass: less memory, more time, the same results."""
    compile: Hardware[Adjustable[bool]] = False
    """Compile the model with torch.compile: the first steps take minutes, the others are faster."""
    deterministic: Hardware[Adjustable[bool]] = False
    """Use only algorithms of a GPU that give the same bits each time: slower, a resumed run repeats what an undisturbed
    one does. A CPU does so anyway."""
    mixed_precision: Hardware[Adjustable[Precision | None]] = None
    """Precision of the backbone; distances and losses stay in float32. Default: what accelerate is configured
    to use."""
    num_workers: Hardware[Adjustable[CountOrZero | None]] = None
    """Processes that decode images, per training process. Default: by the number of cores."""

    output_dir: Run[Adjustable[Unpublished[Place[str | None]]]] = None
    """Run folder. Default: runs/<command>-<labeled>-<unlabeled>."""
    seed: Run[Annotated[int, Field(ge=0, lt=2**32)]] = 0
    """Seed of every random choice."""
    eval_every: Run[Adjustable[CountOrZero]] = 500
    """Steps between evaluations; 0 evaluates at the end only. Default: 500, or a quarter of a shorter run whose
    --max-steps is left to its default."""
    save_every: Run[Adjustable[CountOrZero]] = 500
    """Steps between checkpoints; 0 saves at the end only."""
    keep_checkpoints: Run[Adjustable[Count]] = 2
    """How many checkpoints stay; older ones are deleted."""
    log_every: Run[Adjustable[Count]] = 10
    """Steps between lines in metrics.jsonl."""
    resume: Run[Start[bool]] = False
    """Go on from the newest checkpoint in --output-dir, with the configuration found there; flags override it."""
    report_to: Run[Adjustable[str | None]] = None
    """Trackers that get the values of metrics.jsonl as they are written, joined by commas: tensorboard, wandb, trackio,
    mlflow. Default: none."""
    stop_on_collapse: Run[Adjustable[bool]] = False
    """End the run when its embeddings collapse to a point or a line; without this the run only says so."""
    no_report: Run[Adjustable[bool]] = False
    """Leave report.html out at the end of the run; `report RUN` makes it later."""
    dry_run: Run[Start[bool]] = False
    """Check all input, print what the run would do (steps, passes, memory, evaluation), and end there."""
    overwrite: Run[Start[bool]] = False
    """Delete what --output-dir holds and start anew."""
    push_to_hub: Run[Adjustable[Unpublished[bool]]] = False
    """Upload the exported model to the Hugging Face hub when the run ends; the login is that of `hf auth login`."""
    hub_model_id: Run[Adjustable[Unpublished[Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None]]] = None
    """Where --push-to-hub puts the model: user/name."""
    hub_private: Run[Adjustable[Unpublished[bool]]] = False
    """Create that repository private."""
    license: Run[Adjustable[Unpublished[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")] | None]]] = None
    """License of the trained model, stated in its card (mit, cc-by-nc-4.0). Default: the base model's, where its card
    says it."""

    @property
    def command(self) -> Command:
        """The command that trains so: by which images there are."""
        return command_of(self.labeled, self.unlabeled)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, once a run has been set up."""
        assert not isinstance(self.learning_rate, str), "set by `training.resolve.with_learning_rate`"
        return self.learning_rate

    def rate(self, trust: float) -> float:
        """The peak learning rate where the relations of unlabeled images are trusted so far, 0..1.

        Labels alone overfit at a rate that relations of many images need.
        """
        full = self.peak_learning_rate
        if self.command != "semi" or isinstance(self.label_learning_rate, str):
            return full
        return self.label_learning_rate + (full - self.label_learning_rate) * trust

    @property
    def warmup_steps(self) -> int:
        """Steps on labels alone, resolved."""
        if self.labeled is None:
            return 0
        if self.label_warmup_steps is None:
            return round(0.1 * self.max_steps)
        return self.label_warmup_steps

    @property
    def calibrates(self) -> bool:
        """Whether labels measure how right the teacher's relations are."""
        return self.command == "semi" and self.relations == "pool"

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers of --report-to, each once."""
        names = [name.strip() for name in (self.report_to or "none").split(",")]
        return [] if names == ["none"] else list(dict.fromkeys(names))

    @property
    def classes_per_batch(self) -> int:
        """Classes drawn for a labeled batch."""
        return self.labeled_batch_size // self.images_per_class

    @property
    def queries_per_batch(self) -> int:
        """Queries drawn for an unlabeled batch."""
        return self.unlabeled_batch_size // self.num_neighbors

    @property
    def live_images(self) -> int:
        """Most images of the pool: never less than a batch draws."""
        return max(self.pool_size, self.unlabeled_batch_size)

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # What YAML makes of `mixed_precision: no`.

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers_in_any_spelling(cls, value: Any) -> Any:
        """YAML reads `1e3` as text: as a count it is 1000."""
        if isinstance(value, str) and re.fullmatch(r"\d+(\.0*)?[eE]\+?\d+", value):
            return int(float(value))
        return value

    @model_validator(mode="after")
    def _batches_fit_together(self) -> Self:
        def divides(batch: str, part: str) -> None:
            size, unit = getattr(self, batch), getattr(self, part)
            if batch not in self.model_fields_set:
                size = max(size // unit, 2) * unit
                object.__setattr__(self, batch, size)  # It is frozen, but still being made.
            if size % unit:
                raise ValueError(
                    f"{flag(batch)} {size} is not a multiple of {flag(part)} {unit}: "
                    f"take {max(size // unit, 1) * unit} or {(size // unit + 1) * unit}"
                )

        if self.labeled:
            divides("labeled_batch_size", "images_per_class")
        if self.unlabeled:
            divides("unlabeled_batch_size", "num_neighbors")
            if self.unlabeled_batch_size * self.num_views < 2:
                raise ValueError("--unlabeled-batch-size 1 with --num-views 1 has nothing to compare: raise either")
        if self.labeled and self.classes_per_batch < 2:
            raise ValueError(
                f"--labeled-batch-size {self.labeled_batch_size} holds one class of --images-per-class "
                f"{self.images_per_class}: a batch compares at least two, so double --labeled-batch-size"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit_together(self) -> Self:
        if self.lr_warmup_steps >= self.max_steps:
            raise ValueError(f"--lr-warmup-steps {self.lr_warmup_steps} must be less than --max-steps {self.max_steps}")
        if self.labeled and self.unlabeled and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"--label-warmup-steps {self.warmup_steps} leaves none of --max-steps {self.max_steps} for the "
                f"unlabeled images: lower it, or use `sup`"
            )
        return self

    @model_validator(mode="after")
    def _sources_fit_together(self) -> Self:
        if self.relevance < 1 and not self.labeled:
            raise ValueError(f"--relevance {self.relevance}: there are no labeled images to be near to; leave it out")
        if self.cache_side and self.cache_images == "none":
            raise ValueError(f"--cache-side {self.cache_side} is for a cache: add --cache-images raw, or leave it out")
        if self.exclude_overlap and not self.unlabeled:
            raise ValueError("--exclude-overlap is about unlabeled images, and there are none: leave it out")
        if self.exclude_overlap and not (self.eval or self.test_classes):
            raise ValueError(
                "--exclude-overlap drops what is evaluated on, and nothing is: name --eval, or leave it out"
            )
        if self.test_classes and self.eval:
            raise ValueError("--test-classes keeps classes of --labeled for evaluation: drop it, or --eval")
        if self.test_classes and not self.labeled:
            raise ValueError(
                "--test-classes divides the classes of --labeled: leave it out of `unsup`, and name --eval"
            )
        if self.validation_classes and not self.labeled:
            raise ValueError("--validation-classes keeps classes of --labeled, and there are none: leave it out")
        if self.validation_classes and not self.eval_every:
            raise ValueError("--validation-classes chooses among evaluated steps: give --eval-every more than 0")
        return self

    @model_validator(mode="after")
    def _ways_fit_together(self) -> Self:
        if self.batchnorm == "batch" and self.micro_batch_size:
            raise ValueError("--batchnorm batch needs the batch in one piece: drop it, or --micro-batch-size")
        for name in self.trackers:
            if name not in TRACKERS:
                raise ValueError(f"--report-to {self.report_to}: choose among {', '.join(TRACKERS)}, or none")
        if self.resume and self.overwrite:
            raise ValueError("--resume keeps the run folder and --overwrite deletes it: choose one")
        if self.backbone_weights and self.backbone not in ("auto", "resnet50"):
            raise ValueError(
                f"--backbone-weights is for a ResNet-50, --backbone is {self.backbone}: leave one of them out"
            )
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("--push-to-hub needs a place: name it with --hub-model-id user/name")
        return self

    def to_yaml(self) -> str:
        """The configuration as a recipe; how this run was started (resume, overwrite) is not part of it."""
        values = self.model_dump(exclude=set(fields_that(Mark.START)))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def command_of(labeled: str | None, unlabeled: str | None) -> Command:
    """semi with both kinds of images, sup or unsup with one of them."""
    return "semi" if labeled and unlabeled else "sup" if labeled else "unsup"


def flag(name: str) -> str:
    """labeled_batch_size -> --labeled-batch-size"""
    return "--" + name.replace("_", "-")


def panel(name: str) -> str:
    """The panel of `--help` in which a field is listed."""
    return next(mark for mark in TrainConfig.model_fields[name].metadata if isinstance(mark, str))


def fields_that(mark: Mark) -> list[str]:
    """Names of the fields with a mark, in order."""
    return [name for name, field in TrainConfig.model_fields.items() if mark in field.metadata]

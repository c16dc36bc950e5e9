"""From a configuration to a finished run folder: set up, train, export, report, upload."""

import contextlib
from typing import Any, NamedTuple

from stml_semi.config import TrainConfig
from stml_semi.data.batches.live_images import describe_images
from stml_semi.data.batches.plan import held_out_classes
from stml_semi.data.claims import claim, skipped_files, terms_of_use
from stml_semi.data.run_tables import cache_tables, describe_excluded, kept_classes, share_of_labeled
from stml_semi.losses.proxy import LossFunction
from stml_semi.models.build import backbone_commit
from stml_semi.report.write import ReportedRun, write_or_explain
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.log import Choice, evaluations
from stml_semi.runtime import distributed
from stml_semi.runtime.distributed import together
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.exact import exact_float32
from stml_semi.runtime.failures import explained
from stml_semi.runtime.machine import describe_start, gpu_joules
from stml_semi.runtime.terminal_text import lines_table
from stml_semi.sharing.card import CardFacts, card_files
from stml_semi.sharing.export import export_model
from stml_semi.sharing.inputs import find_inputs
from stml_semi.sharing.origin import find_origin
from stml_semi.sharing.push import push
from stml_semi.sharing.thresholds import of_run
from stml_semi.training.outputs import Callbacks, Outputs, Progress
from stml_semi.training.preflight.dry_run import plan_of
from stml_semi.training.run_progress import RunProgress
from stml_semi.training.setup import Prepared, setup
from stml_semi.training.trackers import Trackers
from stml_semi.training.trainer import Trainer

_SHOWN = ("labeled", "unlabeled", "evaluation", "model", "steps", "defaults", "memory", "processes", "run folder")
"""Lines of the plan that a run prints before it starts; --dry-run prints them all."""


class Result(NamedTuple):
    """Where a run ended."""

    folder: RunFolder
    lines: list[dict[str, Any]]
    """The evaluation lines of metrics.jsonl."""
    claim: str
    """What may be said of the classes that were evaluated on."""
    problem: str | None = None
    """Why the finished model was not uploaded."""


@exact_float32()
def run(config: TrainConfig, *, labeled_loss: LossFunction | None = None, callbacks: Callbacks | None = None) -> Result:
    """Trains as configured and leaves a run folder.

    Args:
        config: resolved.
        labeled_loss: of the program that trains, in place of the one that the configuration names.
        callbacks: functions of that program.

    Raises:
        BadInput: with the flag and the fix; nothing has been written or deleted then.
        RunFailed: it could not be finished; what was saved can be resumed.
    """
    prepared = setup(config)
    main = prepared.accelerator.is_main_process
    progress = RunProgress(prepared.config, enabled=main)
    if main:
        plan = plan_of(prepared)
        progress.console.print(lines_table({name: plan[name] for name in _SHOWN if name in plan}))
    with progress, contextlib.closing(prepared.folder.lock):
        train(prepared, progress, labeled_loss, callbacks)
        lines = distributed.from_main(lambda: evaluations(prepared.folder.log.lines()))
        prepared.accelerator.end_training()
        problem = finish(prepared, progress) if main else None
    return Result(prepared.folder, lines, prepared.folder.claim, problem)


def train(
    prepared: Prepared,
    progress: Progress,
    labeled_loss: LossFunction | None = None,
    callbacks: Callbacks | None = None,
) -> None:
    """Trains, or resumes, and exports the model; all processes call this together.

    Raises:
        BadInput: the cache or the run folder cannot be written, or the checkpoint cannot be resumed.
        RunFailed: as `run`.
    """
    config, folder, accelerator = prepared.config, prepared.folder, prepared.accelerator
    trackers = Trackers(config, folder.path, progress.note, enabled=accelerator.is_main_process)
    tables = cache_tables(config, prepared.tables, prepared.views.size)
    outputs = Outputs(folder, trackers, progress, callbacks or Callbacks())
    shared = share_of_labeled(prepared.tables)
    trainer = Trainer(prepared, tables, outputs, novelty=novelty(shared), labeled_loss=labeled_loss)
    start = trainer.restore() if config.resume else 0
    # Nothing is written or deleted before all input was found good.
    kept, commit = kept_classes(config, prepared.tables), backbone_commit(config)
    together(lambda: folder.prepare(config, kept, claim=claim(prepared.tables), backbone_commit=commit))
    _announce(prepared, progress, shared)
    session = folder.session(describe_start(processes=distributed.world_size(), first_step=start), gpu_joules)
    with explained(trainer.batches.rows, config.micro_batch_size), session, trackers.started(start):
        choice = trainer.train(start)
        if accelerator.is_main_process:
            progress.note(f"exporting the model to {folder.model}")
            _export(prepared, choice)
        accelerator.wait_for_everyone()


def novelty(shared: float) -> float:
    """How much unlabeled images show beside the labeled ones: 1 if there are as many new ones, 0 if there are none.

    Args:
        shared: of them that are labeled ones, 0..1.
    """
    return min(1.0, (1 - shared) / shared) if shared else 1.0


def _announce(prepared: Prepared, progress: Progress, shared: float) -> None:
    """What the user should know before it starts; what was excluded is listed in the run folder."""
    config, tables, folder = prepared.config, prepared.tables, prepared.folder
    if tables.excluded is not None:
        folder.write_overlap(tables.excluded)
    if tables.excluded:
        progress.note(f"{describe_excluded(tables)}; listed in {folder.overlap}")
    for text in terms_of_use(config):
        progress.note(text)
    for sentence in skipped_files(tables):
        progress.note(f"warning: {sentence}")
    if shared > 0.9:
        progress.note(
            f"warning: {shared:.0%} of the unlabeled images are labeled ones too: they show nothing new, so that the "
            "labels decide; name others with --unlabeled"
        )
    if config.sigma != "auto" and len(held_out_classes(config, tables.labeled)):
        progress.note(
            f"warning: --sigma {config.sigma:g} is not used, because labels calibrate the relations; "
            "--relations batch uses it"
        )
    if tables.unlabeled is not None and tables.unlabeled.weights:
        progress.note(f"pool: {describe_images(tables.unlabeled, config.live_images)}")
    if config.batchnorm == "batch":
        progress.note(
            "--batchnorm batch: each process normalizes by its own share of the batch, so results depend on the number "
            "of processes"
        )


def _export(prepared: Prepared, choice: Choice) -> None:
    config, folder = prepared.config, prepared.folder
    facts = CardFacts(
        config,
        folder.log.lines(),
        weights=choice.model,
        alpha=choice.alpha,
        step=choice.step,
        width=prepared.embedder.head_f.out_features,
        size=prepared.views.size,
        pooling=prepared.embedder.pooling.kind,
        claim=folder.claim,
        origin=find_origin(config)._replace(commit=folder.backbone_commit),
        inputs=find_inputs(prepared.backbone.processor),
        thresholds=of_run(folder.log.lines(), choice),
    )
    export_model(prepared.embedder, prepared.backbone.processor, folder.model, card_files(facts))


def finish(prepared: Prepared, progress: Progress) -> str | None:
    """Writes the report and uploads the model, after the processes have parted: none waits for either.

    Returns what went wrong with the upload, if anything: a failed upload is no failed run.
    """
    config, folder = prepared.config, prepared.folder
    if not config.no_report:
        reported = ReportedRun(folder, config, prepared.tables)
        progress.note(write_or_explain(reported, prepared.accelerator.device))
    if not config.push_to_hub:
        return None
    try:
        pushed = push(str(folder.path), str(config.hub_model_id), private=config.hub_private, note=progress.note)
    except BadInput as error:
        return str(error)
    progress.note(f"uploaded to {pushed.url}")
    return None

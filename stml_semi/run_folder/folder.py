"""The run folder: config.yaml, run.json, metrics.jsonl, bad_images.jsonl, checkpoints/, model/, report.html."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stml_semi.config import Mark, TrainConfig, fields_that, flag
from stml_semi.data.overlap import ExcludedImage
from stml_semi.data.sources.request import specs_of
from stml_semi.run_folder.lock import NAME as LOCK_FILE
from stml_semi.run_folder.lock import FolderLock
from stml_semi.run_folder.log import RunLog
from stml_semi.run_folder.recipe import read_config, read_recipe
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.files import append_json_lines, read_json_lines, write_json_lines, write_text

# What a run writes, and what --overwrite therefore may delete; the configuration, by which a run is known, goes last.
_OWN = (
    "checkpoints",
    "model",
    "non_finite",
    "pool",
    "report.html",
    "frozen_scores.safetensors",
    "tensorboard",
    "wandb",
    "run.json",
    "test_classes.json",
    "validation_classes.json",
    "overlap.jsonl",
    "bad_images.jsonl",
    "metrics.jsonl",
    "config.yaml",
)


class RunFolder:
    """Paths, facts and logs of a run. Only the main process writes."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.config_file = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.pool = self.path / "pool"
        self.report = self.path / "report.html"
        self.frozen_scores = self.path / "frozen_scores.safetensors"
        self.overlap = self.path / "overlap.jsonl"
        self._facts_file = self.path / "run.json"
        self.log = RunLog(self.path, writes=writes)
        self.lock = FolderLock(self.path, lambda: next(iter(self.sessions()[-1:]), None))

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """A run that training left, finished or not, to read.

        Raises:
            BadInput: there is none.
        """
        folder = cls(path, writes=False)
        if not folder.is_run():
            raise BadInput(f"{path}: no run folder (config.yaml and metrics.jsonl are missing); check the path")
        return folder

    def is_run(self) -> bool:
        """Whether training left something here.

        Raises:
            BadInput: it may not be read.
        """
        files = (self.config_file, self.log.metrics)
        try:
            if not all(file.is_file() for file in files):
                return False
            for file in files:
                file.open("rb").close()
            return True
        except OSError as error:  # No permission, or a name that is too long.
            raise BadInput(
                f"{self.path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from None

    def config(self) -> TrainConfig:
        """
        Raises:
            BadInput: config.yaml is not that of a run.
        """
        return read_config(self.config_file)

    # ------------------------------------------------------------------ before a run

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """
        Raises:
            BadInput: the folder holds files and neither resume nor overwrite was asked for, it cannot be written,
                another run writes there, or there is nothing to resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"--output-dir {self.path}: is a file; name a folder")
        if self.writes:
            self.lock.check()
        filled = self.path.is_dir() and any(path.name != LOCK_FILE for path in self.path.iterdir())
        if filled and overwrite and not self._has_config():
            raise BadInput(
                f"--overwrite: {self.path} holds files but no config.yaml of a run, so it is left alone; choose "
                f"another --output-dir or empty it yourself"
            )
        if filled and not resume and not overwrite:
            raise BadInput(
                f"--output-dir {self.path}: holds files already; add --resume to continue from its newest checkpoint, "
                f"--overwrite to start anew, or choose another folder"
            )
        if resume and not self._has_config():
            raise BadInput(f"--resume: {self.path} holds no run; check --output-dir, or drop --resume to start one")

    def _has_config(self) -> bool:
        try:
            read_recipe(self.config_file)
        except BadInput:
            return False
        return True

    def check_outside(self, config: TrainConfig) -> None:
        """
        Raises:
            BadInput: the run folder holds what the run reads.
        """
        for name in fields_that(Mark.PLACE):
            for part in () if name == "output_dir" else specs_of(getattr(config, name)):
                path = Path(part).expanduser()
                if part and path.exists() and self.path.resolve() in (path.resolve(), *path.resolve().parents):
                    raise BadInput(f"--output-dir {self.path} holds {flag(name)} {part}: choose a folder outside of it")

    def check_same_run(self, config: TrainConfig) -> None:
        """
        Raises:
            BadInput: a resumed run with another objective, model or data.
        """
        stored, adjustable = self.config(), fields_that(Mark.ADJUSTABLE)
        fixed = [name for name in TrainConfig.model_fields if name not in adjustable]
        changed = [name for name in fixed if getattr(config, name) != getattr(stored, name)]
        if changed:
            name = changed[0]
            raise BadInput(
                f"--resume continues with {flag(name)} {getattr(stored, name)}, not {getattr(config, name)}: leave "
                f"{', '.join(map(flag, changed))} out, or start another run"
            )

    def check_classes(self, kept: dict[str, list[str]]) -> None:
        """
        Raises:
            BadInput: a resumed run would keep other classes for evaluation than it did.
        """
        for kind, classes in kept.items():
            path = self._kept_classes(kind)
            if classes != _read_json(path, [], "bring the file back, or start another run"):
                raise BadInput(
                    f"--resume: --labeled has other classes than when {path} was written, so trained ones would be "
                    f"evaluated on; bring the old ones back, or start another run"
                )

    def _kept_classes(self, kind: str) -> Path:
        return self.path / f"{kind}_classes.json"

    def prepare(
        self, config: TrainConfig, kept: dict[str, list[str]], *, claim: str = "", backbone_commit: str | None = None
    ) -> None:
        """Creates the folder, takes its lock, and writes what is known before training.

        With config.overwrite an earlier run is deleted.

        Args:
            config: becomes config.yaml.
            kept: names of classes that are not trained on, by what they are for ("test", "validation").
            claim: what may be said of the classes that are evaluated on.
            backbone_commit: of the hub, at which the backbone was opened; a resumed run keeps what it began with.

        Raises:
            BadInput: the folder cannot be written, or another run was faster.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            # Between the first look and the lock another run may have started, and even ended, here.
            self.check(resume=config.resume, overwrite=config.overwrite)
            for name in _OWN if config.overwrite else ():
                own = self.path / name
                if own.is_dir() and not own.is_symlink():
                    shutil.rmtree(own)
                else:
                    own.unlink(missing_ok=True)
            write_text(self.config_file, config.to_yaml())
            for kind, classes in kept.items():
                write_text(self._kept_classes(kind), json.dumps(classes, ensure_ascii=False, indent=1) + "\n")
            self._write_facts(claim=claim)
            if not config.resume:
                self._write_facts(backbone_commit=backbone_commit)
            self.log.metrics.touch()
            self.log.bad_images.touch()
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"--output-dir {self.path}: {reason}; choose a folder you can write to") from None

    # ------------------------------------------------------------------ run.json and overlap.jsonl

    @property
    def claim(self) -> str:
        """What may be said of the classes that were evaluated on: made once, when the run opened its images."""
        return self._facts()["claim"]

    @property
    def backbone_commit(self) -> str | None:
        """The commit of the hub that the backbone's weights are from; None of a local one."""
        return self._facts()["backbone_commit"]

    def sessions(self) -> list[dict[str, Any]]:
        """How the run was started each time (see `machine.describe_start`), for how many "seconds" it worked, and
        what its GPUs used ("gpu_joules", those of the main process's machine; None where that is not known).

        The time of a session that was killed is None.
        """
        return self._facts()["sessions"]

    @contextlib.contextmanager
    def session(self, about: dict[str, Any], gpu_joules: Callable[[], float | None] = lambda: None) -> Iterator[None]:
        """Writes down how a session was started, and at its end how long it took, and what energy.

        Args:
            about: how it was started.
            gpu_joules: reads a counter of energy; None where there is none.
        """
        earlier, started, before = self.sessions(), time.monotonic(), gpu_joules()
        self._write_facts(sessions=[*earlier, {**about, "seconds": None, "gpu_joules": None}])
        yield
        seconds, after = time.monotonic() - started, gpu_joules()
        used = None if before is None or after is None else after - before
        self._write_facts(sessions=[*earlier, {**about, "seconds": seconds, "gpu_joules": used}])

    def _facts(self) -> dict[str, Any]:
        fix = "bring it back, or delete it: the run then forgets its claim about the evaluated classes and its sessions"
        known = _read_json(self._facts_file, {}, fix)
        facts = {"claim": "", "backbone_commit": None, "sessions": []} | known
        claim, sessions = facts["claim"], facts["sessions"]
        if not (isinstance(claim, str) and isinstance(sessions, list) and all(isinstance(s, dict) for s in sessions)):
            raise BadInput(f"{self._facts_file}: is damaged; {fix}")
        return facts

    def _write_facts(self, **changed: Any) -> None:
        if self.writes:
            write_text(self._facts_file, json.dumps(self._facts() | changed, indent=1, ensure_ascii=False))

    def write_overlap(self, dropped: Iterable[ExcludedImage]) -> None:
        """Lists unlabeled images that are not used."""
        if self.writes:
            write_json_lines(self.overlap, [one._asdict() for one in dropped])

    def add_overlap(self, excluded: Iterable[ExcludedImage]) -> int:
        """Lists further images, each once. Returns how many are listed."""
        listed = {line["image"] for line in read_json_lines(self.overlap)}
        new = {one.image: one for one in excluded if one.image not in listed}
        if self.writes:
            append_json_lines(self.overlap, [one._asdict() for one in new.values()])
        return len(listed) + len(new)

    def read_overlap(self) -> list[ExcludedImage] | None:
        """Those that were listed; None if nobody looked for them."""
        if not self.overlap.is_file():
            return None
        return [ExcludedImage(**line) for line in read_json_lines(self.overlap)]


def _read_json(path: Path, default: Any, fix: str) -> Any:
    """What a file holds, of the kind of `default`; this if there is no file.

    Raises:
        BadInput: it is damaged.
    """
    if not path.is_file():
        return default
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: is damaged ({one_line(error)}); {fix}") from None
    if not isinstance(found, type(default)):
        raise BadInput(f"{path}: is damaged; {fix}")
    return found

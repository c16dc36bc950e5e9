"""The run folder: config.yaml, metrics.jsonl, run.json, bad_images.jsonl, checkpoints/, model/."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stml_semi.config import TrainConfig, read_recipe
from stml_semi.data.batches.loading import BadPicture
from stml_semi.data.overlap import Dropped
from stml_semi.runtime.errors import BadInput

# What a run writes, and what --overwrite therefore may delete; the configuration, by which a run is known, goes last.
_OWN = (
    "checkpoints",
    "model",
    "non_finite",
    "pool",
    "report.html",
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

KeptClasses = dict[str, list[str]]
"""Names of the classes that a run kept out of training, by what they are for: "test", "validation"."""


class RunFolder:
    """Paths and logs of a run. Only the main process writes."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.metrics = self.path / "metrics.jsonl"
        self.bad_images = self.path / "bad_images.jsonl"
        self.config = self.path / "config.yaml"
        self.overlap = self.path / "overlap.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.pool = self.path / "pool"
        self.report = self.path / "report.html"
        self.facts = self.path / "run.json"
        self._listed: set[str] = set()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """
        Raises:
            BadInput: the folder holds files and neither resume nor overwrite was asked for, it cannot be written,
                or there is nothing to resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"--output-dir {self.path}: is a file; name a folder")
        filled = self.path.is_dir() and any(self.path.iterdir())
        if filled and overwrite and not self._is_run():
            raise BadInput(
                f"--overwrite: {self.path} holds files but no config.yaml of a run, so it is left alone; choose "
                f"another --output-dir or empty it yourself"
            )
        if filled and not resume and not overwrite:
            raise BadInput(
                f"--output-dir {self.path}: holds files already; add --resume to go on from its newest checkpoint, "
                f"--overwrite to start anew, or choose another folder"
            )
        if resume and not self._is_run():
            raise BadInput(f"--resume: {self.path} holds no run; check --output-dir, or drop --resume to start one")

    def _is_run(self) -> bool:
        try:
            read_recipe(self.config)
        except BadInput:
            return False
        return True

    def check_classes(self, kept: KeptClasses) -> None:
        """
        Raises:
            BadInput: a run that goes on would keep other classes for evaluation than it did.
        """
        for kind, classes in kept.items():
            path = self._kept_classes(kind)
            if classes != (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []):
                raise BadInput(
                    f"--resume: --labeled has other classes than when {path} was written, so trained ones would be "
                    f"evaluated on; bring the old ones back, or start another run"
                )

    def _kept_classes(self, kind: str) -> Path:
        return self.path / f"{kind}_classes.json"

    def prepare(self, config: TrainConfig, kept: KeptClasses, *, claim: str = "") -> None:
        """Creates the folder and writes config.yaml, the claim, and the classes that were kept for evaluation if there
        are any; with config.overwrite what an earlier run wrote is deleted."""
        if not self.writes:
            return
        try:
            for name in _OWN if config.overwrite else ():
                own = self.path / name
                if own.is_dir() and not own.is_symlink():
                    shutil.rmtree(own)
                else:
                    own.unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            _replace(self.config, config.to_yaml())
            for kind, classes in kept.items():
                _replace(self._kept_classes(kind), json.dumps(classes, ensure_ascii=False, indent=1) + "\n")
            self._write_facts(claim=claim)
            self.metrics.touch()
            self.bad_images.touch()
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"--output-dir {self.path}: {reason}; choose a folder you can write to") from None

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        if self.writes:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def write_overlap(self, dropped: Iterable[Dropped]) -> None:
        """Lists unlabeled images that are not used."""
        if self.writes:
            _write_lines(self.overlap, [one._asdict() for one in dropped])

    def read_overlap(self) -> list[Dropped] | None:
        """Those that were listed, if anybody looked for them."""
        if not self.overlap.is_file():
            return None
        return [Dropped(**line) for line in _read_lines(self.overlap)]

    def lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds."""
        return _read_lines(self.metrics)

    @property
    def claim(self) -> str:
        """What may be said of the classes that were evaluated on: made once, when the run opened its images."""
        return self._facts()["claim"]

    def _facts(self) -> dict[str, Any]:
        return {"claim": "", "sittings": []} | (
            json.loads(self.facts.read_text(encoding="utf-8")) if self.facts.is_file() else {}
        )

    def _write_facts(self, **changed: Any) -> None:
        if self.writes:
            _replace(self.facts, json.dumps(self._facts() | changed, indent=1, ensure_ascii=False))

    def sittings(self) -> list[dict[str, Any]]:
        """How the run was started each time (see `machine.describe_start`), for how many "seconds" it worked, and
        what its GPUs used ("gpu_joules", those of the main process's machine; None where that is not known).

        The time of a sitting that was killed is None.
        """
        return self._facts()["sittings"]

    @contextlib.contextmanager
    def sitting(self, about: dict[str, Any], gpu_joules: Callable[[], float | None] = lambda: None) -> Iterator[None]:
        """Writes down how a sitting was started, and at its end how long it took, and what energy.

        Args:
            about: how it was started.
            gpu_joules: reads a counter of energy; None where there is none.
        """
        earlier, started, before = self.sittings(), time.monotonic(), gpu_joules()
        self._write_facts(sittings=[*earlier, {**about, "seconds": None, "gpu_joules": None}])
        yield
        seconds, after = time.monotonic() - started, gpu_joules()
        used = None if before is None or after is None else after - before
        self._write_facts(sittings=[*earlier, {**about, "seconds": seconds, "gpu_joules": used}])

    def bad_lines(self) -> list[dict[str, str]]:
        """What bad_images.jsonl holds."""
        return _read_lines(self.bad_images) if self.bad_images.is_file() else []

    def rewind(self, step: int, *, but: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Forgets lines of steps after `step`, and those that are named: a resumed run writes them again."""
        listed = _read_lines(self.bad_images)
        self._listed = {line["image"] for line in listed}
        if self.writes:
            kept = [line for line in self.lines() if line["step"] <= step and not (but and but(line))]
            _write_lines(self.metrics, kept)
            _write_lines(self.bad_images, listed)

    @property
    def num_bad(self) -> int:
        """How many pictures are listed as bad."""
        return len(self._listed)

    def list_bad(self, pictures: Iterable[BadPicture]) -> int:
        """Lists pictures in bad_images.jsonl, each once. Returns how many are listed."""
        new = {p.image: p for p in pictures if p.image not in self._listed}
        self._listed |= new.keys()
        if new and self.writes:
            with self.bad_images.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(p._asdict(), ensure_ascii=False) + "\n" for p in new.values())
        return len(self._listed)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without a last one that a killed process left unfinished."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # Torn by a full disk, and gone on after it.
            lines.append(json.loads(line))
    return lines


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    _replace(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _replace(path: Path, text: str) -> None:
    """Writes a file in one go: a process that is killed here, or a full disk, leaves the old one."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

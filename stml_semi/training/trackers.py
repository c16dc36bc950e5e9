"""Trackers through accelerate: TensorBoard, Weights & Biases, Trackio or MLflow get what metrics.jsonl gets."""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stml_semi.config import TrainConfig
from stml_semi.runtime.errors import BadInput, one_line

if TYPE_CHECKING:
    from PIL import Image

_PROJECT = "stml-semi"


def check_installed(names: list[str]) -> None:
    """
    Raises:
        BadInput: a tracker that is not installed.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # A mere folder of that name, as wandb leaves behind, has no origin.
            raise BadInput(f"--report-to {name}: it is not installed; run `pip install {name}`, or leave it out")


class Trackers:
    """Those of a run. One that fails is named once and left out from then on: the run is worth more."""

    def __init__(self, config: TrainConfig, folder: Path, note: Callable[[str], None], *, enabled: bool) -> None:
        """
        Args:
            config: its report_to names the trackers; the whole is reported to them.
            folder: of the run; its name is the name of the run there.
            note: tells the user why a tracker was left out.
            enabled: only the main process reports.
        """
        self.config, self.folder, self._note = config, folder, note
        self.names = config.trackers if enabled else []
        self._running: dict[str, Any] = {}

    @contextlib.contextmanager
    def started(self, step: int) -> Iterator[None]:
        """Starts the trackers of a run that goes on from `step`, and finishes them."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        title, place = self.folder.resolve().name, str(self.folder)
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": place, "purge_step": step + 1 if step else None},
            "wandb": {"run_name": _PROJECT, "name": title, "dir": place},
            "trackio": {"run_name": _PROJECT, "name": title},
            "mlflow": {"experiment_name": _PROJECT, "run_name": title},
        }
        # A value that is not set has no type that all of them would take.
        settings = {key: "none" if value is None else value for key, value in self.config.model_dump().items()}
        for name in self.names:
            with self._surviving(name):
                tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
                tracker.start()
                tracker.store_init_configuration(settings)
                self._running[name] = tracker
        try:
            yield
        finally:
            self._send_to_all(lambda tracker: tracker.finish())

    def log(self, line: dict[str, Any]) -> None:
        """Reports a line of metrics.jsonl: `train/loss`, `eval/student/recall_at_1` (not all of them allow an @)."""
        place = f"{line.get('split', 'eval')}/{line['model']}" if "model" in line else "train"
        values = {
            f"{place}/{key.replace('@', '_at_')}": value
            for key, value in line.items()
            if key != "step" and isinstance(value, int | float)
        }
        self._send_to_all(lambda tracker: tracker.log(values, step=line["step"]))

    @property
    def show_pictures(self) -> bool:
        """Whether one of them shows images."""
        return any(hasattr(tracker, "log_images") for tracker in self._running.values())

    def show(self, name: str, picture: "Image.Image", step: int) -> None:
        """Shows an image where images can be shown."""
        import numpy as np

        pixels = np.asarray(picture)[None]

        def send(tracker: Any) -> None:
            if hasattr(tracker, "log_images"):
                tracker.log_images({name: pixels}, step=step, **_layout(tracker))

        self._send_to_all(send)

    def _send_to_all(self, action: Callable[[Any], None]) -> None:
        for name, tracker in list(self._running.items()):
            with self._surviving(name):
                action(tracker)

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Networks, disks, servers, logins: whatever fails in them must not end the run.
            self._running.pop(name, None)
            reason = one_line(error, 200)
            self._note(f"warning: --report-to {name} stopped ({reason}); the run goes on, metrics.jsonl has everything")


def _layout(tracker: Any) -> dict[str, str]:
    """TensorBoard expects channels first unless it is told."""
    return {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}

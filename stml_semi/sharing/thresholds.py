"""thresholds.json of a model: the cosines from which the nearest image is taken for a match."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stml_semi.metrics import Threshold
from stml_semi.run_folder.log import Choice, choice_of
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.files import write_text

FILE = "thresholds.json"


class Thresholds(NamedTuple):
    """Measured on labeled images of classes that the model was not trained on."""

    data: str
    """The images, in words."""
    num_queries: int
    num_gallery: int
    """Images that were searched: in a larger index, more images are near by chance."""
    thresholds: list[Threshold]
    """Rising precision."""

    def at(self, precision: float) -> Threshold:
        """The threshold of a wanted precision, or of the next higher one that is known.

        Raises:
            BadInput: it was not reached.
        """
        found = next((one for one in self.thresholds if one.precision >= precision - 1e-9), None)
        if found is None:
            most = f"at most {self.thresholds[-1].precision:g}" if self.thresholds else "none"
            raise BadInput(
                f"--min-precision {precision:g}: no threshold of this model reaches it on {self.data} ({most}); give "
                f"a lower one"
            )
        return found

    def to_json(self) -> bytes:
        """The content of the file."""
        return (json.dumps(self._asdict() | {"thresholds": as_lists(self.thresholds)}) + "\n").encode()


def as_lists(thresholds: Sequence[Threshold]) -> list[list[float]]:
    """[precision, cosine, share of matches found] for JSON, to six digits."""
    return [[round(value, 6) for value in one] for one in thresholds]


def of_run(lines: Sequence[dict[str, Any]], choice: Choice) -> Thresholds | None:
    """Those that the validation classes of a run give the model that they chose; None for any other model."""
    line = next((line for line in lines if line.get("thresholds") and choice_of(line) == choice), None)
    if line is None:
        return None
    found = [Threshold(*one) for one in line["thresholds"]]
    return Thresholds("the validation classes of its training", line["num_queries"], line["num_gallery"], found)


def read_thresholds(folder: Path) -> Thresholds | None:
    """Those of a model folder, if it has any.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        found = [Threshold(*map(float, one)) for one in values["thresholds"]]
        return Thresholds(**(values | {"thresholds": found}))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{folder / FILE}: is damaged ({error}); write it again with `evaluate --open-set`") from None


def write_thresholds(folder: Path, thresholds: Thresholds) -> None:
    """Puts them beside the model."""
    write_text(folder / FILE, thresholds.to_json().decode())

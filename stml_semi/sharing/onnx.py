"""ONNX: what the image processor makes of images -> embeddings of unit length, in one file."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stml_semi.data.views import view_size
from stml_semi.runtime.errors import BadInput, RunFailed, one_line
from stml_semi.sharing.load import Retriever, load

FILE = "embedder.onnx"
OPSET = 18
TOLERANCE = 1e-4
# A protobuf holds two gigabytes at most: weights of larger models lie in a file beside it.
_LARGEST = 1.8e9


class _Served(nn.Module):
    def __init__(self, retriever: Retriever) -> None:
        super().__init__()
        self.retriever = retriever

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.retriever(pixel_values), dim=1)


def check_onnx() -> None:
    """
    Raises:
        BadInput: the packages are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise BadInput(f"--format onnx needs {', '.join(missing)}: pip install 'stml-semi[onnx]'")


def export_onnx(folder: Path) -> float:
    """Writes `embedder.onnx` into a model folder, and compares it with the model.

    Input `pixel_values` (batch, 3, H, W) float32 from the folder's image processor, output `embeddings` (batch, d)
    float32 of unit length; the batch is dynamic, the size of the image is the processor's.

    Returns:
        The largest difference from PyTorch in any number of an embedding.

    Raises:
        BadInput: packages are missing.
        RunFailed: torch cannot convert the model, or onnxruntime computes something else.
    """
    check_onnx()
    retriever = load(folder)
    served = _Served(retriever).eval()
    pixels = torch.randn(2, 3, *view_size(retriever.processor), generator=torch.Generator().manual_seed(0))
    size = sum(value.numel() * value.element_size() for value in served.state_dict().values())
    temporary = folder / f".{FILE}"
    if hasattr(retriever.backbone, "set_attn_implementation"):
        # The fused attention of some (Swin) comes out in a memory layout that the exporter cannot follow.
        retriever.backbone.set_attn_implementation("eager")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About the exporter's own future.
            torch.onnx.export(
                served,
                (pixels,),
                str(temporary if size < _LARGEST else folder / FILE),
                input_names=["pixel_values"],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                external_data=size >= _LARGEST,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(error)
        raise RunFailed(
            f"--format onnx: torch cannot convert this backbone ({reason}); {folder} has all else"
        ) from error
    if size < _LARGEST:
        temporary.replace(folder / FILE)
    difference = _difference(folder / FILE, served, pixels)
    if not difference <= TOLERANCE:
        (folder / FILE).unlink()
        raise RunFailed(f"{FILE}: onnxruntime and PyTorch differ by {difference:.1e}; the file was deleted")
    return difference


@torch.inference_mode()
def _difference(path: Path, served: nn.Module, pixels: Tensor) -> float:
    """The largest one, over batches of one and of several."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in (pixels[:1], torch.cat([pixels, pixels.flip(0) / 2, pixels[:1]])):
        found = torch.from_numpy(session.run(None, {"pixel_values": batch.numpy()})[0])
        differences.append((found - served(batch)).abs().max())
    return float(torch.stack(differences).max())  # Python's max would leave out NaN.

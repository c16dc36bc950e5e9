"""A pretended GPU: tensors say that they are on cuda:0, their values live on the CPU.

`python tests/helpers/simulated_cuda.py EVENTS.json ARGUMENTS [THEN ARGUMENTS ...]` is cli.py on such a machine, once
for each list of arguments. Mixing devices raises as it does on a GPU, and so does `.numpy()` of a device tensor. What
would make the host wait, what is copied and float32 that would be computed as TF32 is counted by the line of the
package that caused it, and by what the run was doing: a list of [phase, kind, place, count] per command in EVENTS.json.
"""

import collections
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten
ROOT = Path(__file__).parents[2]
_PACKAGE = str(ROOT / "stml_semi") + "/"
_PLAIN_TO: Any = torch.Tensor.to
_parse: Any = torch._C._nn._parse_to  # pyright: ignore[reportAttributeAccessIssue]
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

# Their results have a size, or a value, that only the device knows.
_WAITING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default),
    *(aten.unique_dim.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor, aten.equal.default),
    *(aten.is_nonzero.default, aten.bincount.default),
}
_INDEXING = {
    *(aten.index.Tensor, aten.index_put_.default, aten.index_put.default),
    *(aten._index_put_impl_.default, aten._unsafe_index.Tensor),
}
_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.bmm.default, aten.baddbmm.default}
_CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}


class Events:
    """What happened, how often, and where."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.phase = "outside"

    def add(self, kind: str) -> None:
        self.counts[self.phase, kind, _place()] += 1

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


EVENTS = Events()


def _place() -> str:
    """The line of the package that is at work, and the library's below it, if one asked."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"{name.removeprefix(_PACKAGE)}:{frame.f_lineno} {frame.f_code.co_qualname}{library}"
        if "site-packages" in name and "/torch/" not in name and not library:
            library = f" > {name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device, around one that is not."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CPU,  # What PyTorch's C++ believes, or it would start a driver.
            requires_grad=False,
        )
        made.held = inner
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    device = property(lambda self: CUDA)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType]
    is_cpu = property(lambda self: False)  # pyright: ignore[reportAssignmentType]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], context: None, size: Any, stride: Any) -> "OnDevice":
        return OnDevice(parts["held"])

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        copy = kwargs.pop("copy", False)
        device, dtype, _, layout = _parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            EVENTS.add("waits: to the host")
            return _to_host(self, dtype)
        if not copy and dtype in (None, self.dtype) and _has_layout(self, layout):
            return self
        wanted = {} if layout is None else {"memory_format": layout}
        return aten._to_copy.default(self, dtype=dtype, **wanted)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copied: Any = OnDevice(self.held.detach().clone())
            if getattr(self, "_is_param", False):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        EVENTS.add("waits: tolist")
        return self.held.detach().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnDevice{tuple(self.shape)}"

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def record_stream(self, s: Any) -> None: ...


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any, dtype: torch.dtype | None) -> torch.Tensor:
        return tensor.held.detach().clone().to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return OnDevice(grad_outputs[0]), None


def _to_host(tensor: OnDevice, dtype: torch.dtype | None) -> torch.Tensor:
    return _ToHost.apply(tensor, dtype or tensor.dtype)  # pyright: ignore[reportReturnType]


def _parse_to(*args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, bool, Any]:
    plain = (arg.device if isinstance(arg, torch.Tensor) else arg for arg in args)
    return _parse(*plain, **kwargs)


def _has_layout(tensor: torch.Tensor, layout: Any) -> bool:
    return layout in (None, torch.preserve_format) or tensor.is_contiguous(memory_format=layout)


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Tensor.to of a tensor on the host."""
    if isinstance(self, OnDevice):
        return OnDevice.to(self, *args, **kwargs)
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, layout = _parse_to(*args, **kwargs)
    if device is None or device.type != "cuda":
        plain = (arg.device if isinstance(arg, torch.Tensor) else arg for arg in args)
        return _PLAIN_TO(self, *plain, copy=copy, **kwargs)
    EVENTS.add("copies" if non_blocking else "waits: to the device")
    moved = self.detach() if dtype is None else _PLAIN_TO(self.detach(), dtype)
    return OnDevice(moved.clone() if layout is None else moved.clone(memory_format=layout))


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation as the device would see it."""
    flat = [*_flat((args, list(kwargs.values())))]
    there = [arg for arg in flat if isinstance(arg, OnDevice)]
    here = [arg for arg in flat if isinstance(arg, torch.Tensor) and not isinstance(arg, OnDevice)]
    device = kwargs.get("device") or next((arg for arg in flat if isinstance(arg, torch.device)), None)
    made_there = device is not None and torch.device(device).type == "cuda"
    if func is aten._fused_sdp_choice.default:
        return 0
    if func is aten._pin_memory.default:
        return args[0]
    if func is aten.copy_.default:
        return _copy(*args, **kwargs)
    if not there and not made_there:
        return _each(_signed, func(*args, **kwargs))
    if func is aten._to_copy.default and not there:
        EVENTS.add("copies" if kwargs.get("non_blocking") else "waits: to the device")
    if there and here:
        _check_mixed(func, args, here)
    if func in _INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        EVENTS.add("waits: boolean index")
    if func in _WAITING:
        EVENTS.add(f"waits: {func}")
    _check_precision(func, there)
    plain_args = _each(_plain, args)
    plain_kwargs = {name: _each(_plain, value) for name, value in kwargs.items()}
    if "pin_memory" in plain_kwargs:
        plain_kwargs["pin_memory"] = False
    out = func(*plain_args, **plain_kwargs)
    if func is aten._local_scalar_dense.default:
        return out
    return _aliased(func, args, kwargs, _each(_wrapped, out))


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if isinstance(target, OnDevice) and not isinstance(source, OnDevice) and _made_by_the_user(source):
        EVENTS.add("copies" if non_blocking else "waits: to the device")
    if isinstance(source, OnDevice) and not isinstance(target, OnDevice):
        EVENTS.add("waits: to the host")
    aten.copy_.default(_plain(target), _plain(source))
    return target


def _check_mixed(func: Any, args: Any, here: list[torch.Tensor]) -> None:
    """Raises where a device tensor meets one of the host, but for scalars and indices, which are copied."""
    here = [tensor for tensor in here if _made_by_the_user(tensor)]
    if not here:
        return
    if func in _INDEXING:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu): {func}")
        EVENTS.add("waits: an index of the host")
    elif shapes := [tuple(tensor.shape) for tensor in here if tensor.dim()]:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func} {shapes} at {_place()}"
        )


def _check_precision(func: Any, there: list[OnDevice]) -> None:
    switch: Any = None
    if func in _PRODUCTS:
        switch = torch.backends.cuda.matmul
    elif func in _CONVOLUTIONS:
        switch = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    if switch is not None and there[0].dtype == torch.float32 and switch.fp32_precision not in ("ieee", "none"):
        EVENTS.add(f"TF32: {func}")


def _site() -> tuple[int, int] | None:
    """The call, outside of torch, that is running: what one such call makes is on one device."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return None if frame is None else (id(frame), frame.f_lasti)


def _signed(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        made._made_by = _site()  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _made_by_the_user(tensor: torch.Tensor) -> bool:
    """Whether a host tensor is one on a GPU machine too: not one that a composite operation made in between."""
    return getattr(tensor, "_made_by", None) != _site()


def _flat(value: Any) -> Iterator[Any]:
    """What arguments of an operation hold. PyTorch's own trees know more kinds, at five times the time."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """The same arguments or results, with every value changed."""
    return type(value)([_each(change, part) for part in value]) if type(value) in (list, tuple) else change(value)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.held if isinstance(value, OnDevice) else value


def _wrapped(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) else value


def _aliased(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What an operation wrote to is given back as it came in."""
    returns, arguments = func._schema.returns, func._schema.arguments
    if not any(one.alias_info is not None and one.alias_info.is_write for one in returns):
        return out

    def written(alias: Any) -> Any:
        for place, one in enumerate(arguments):
            info = one.alias_info
            if info is not None and info.is_write and info.before_set & alias.before_set:
                return args[place] if place < len(args) and not one.kwarg_only else kwargs.get(one.name)
        return None

    parts = [
        written(one.alias_info) if one.alias_info is not None and one.alias_info.is_write else own
        for one, own in zip(returns, (out,) if len(returns) == 1 else out, strict=True)
    ]
    return parts[0] if len(parts) == 1 else tuple(parts)


class SimulatedDevice(TorchDispatchMode):
    """Within this context tensors can be on cuda:0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def pretend() -> None:
    """Makes this process one on a machine with a GPU, for good. To be called before the package is imported."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Tensor.to = _to  # pyright: ignore[reportAttributeAccessIssue]
    answers: dict[str, Any] = {
        **{"is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True},
        **{"max_memory_allocated": 0, "is_current_stream_capturing": False, "mem_get_info": (2**36, 2**36)},
        **dict.fromkeys(("_lazy_init", "_lazy_call", "set_device", "manual_seed", "manual_seed_all", "synchronize")),
        **dict.fromkeys(("empty_cache", "reset_peak_memory_stats")),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    torch.accelerator.is_available = lambda: False
    torch.backends.cuda.is_built = lambda: False
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None  # pyright: ignore
    import torch.cuda.amp.common as common

    common.amp_definitely_not_available = lambda: False  # pyright: ignore[reportAttributeAccessIssue]
    begin = torch.amp.autocast_mode.autocast.__init__

    def begin_here(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.amp.autocast_mode.autocast.__init__ = begin_here
    torch.inference_mode = _inference_mode  # pyright: ignore[reportAttributeAccessIssue] - knows no such tensors


def _inference_mode(mode: Any = True) -> Any:
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else torch.enable_grad()


def name_phases() -> None:
    """Events of a training run are counted by what it was doing."""
    from stml_semi.training.evaluator import Evaluator
    from stml_semi.training.neighborhoods import NeighborhoodFinder
    from stml_semi.training.trainer import Trainer

    def phase(owner: Any, method: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with EVENTS.during(name):
                return original(*args, **kwargs)

        setattr(owner, method, counted)

    phase(Trainer, "_step", "step")
    phase(NeighborhoodFinder, "__call__", "refresh")
    phase(Evaluator, "evaluate", "evaluation")


def main() -> None:
    """Runs cli.py's commands on the pretended device, and writes down what happened."""
    target, arguments = Path(sys.argv[1]), sys.argv[2:]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    pretend()
    from stml_semi.runtime import machine

    machine.hardware = lambda: {"GPU": "simulated"}
    machine.gpu_joules = lambda: None
    name_phases()
    happened = []
    for command in " ".join(arguments).split(" THEN "):
        print(f"$ cli.py {command}", flush=True)
        code = _run(command.split(" "))
        happened.append([[*key, count] for key, count in sorted(EVENTS.counts.items())])
        EVENTS.counts.clear()
        target.write_text(json.dumps(happened))
        if code:
            sys.exit(code)


def _run(arguments: list[str]) -> Any:
    from accelerate.state import AcceleratorState

    from stml_semi.cli import app

    sys.argv = ["cli.py", *arguments]
    try:
        with SimulatedDevice():
            app.run()
    except SystemExit as end:
        return end.code
    finally:
        AcceleratorState._reset_state(True)  # As in a new process.
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

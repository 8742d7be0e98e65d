"""Plans on a GPU: what may be chosen there, what it stores, and the program that runs there.

In: options with device="cuda"; an assembled program in host memory. Out: an ``Executor`` whose calls run on the device.
Losses are scored on the CPU, where the reference bodies are; times and bytes are the device's own.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.triton_templates import w4_layout
from adaflex.errors import OptionError
from adaflex.options import Options
from adaflex.passes.calibration import Batch, Calibration
from adaflex.passes.sites import Sites
from adaflex.runtime.cuda import CudaExecutor
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import GemmStep, Program
from adaflex.solver.table import Encoding

DEVICE = "cuda"
KINDS = ("fp32", "embed32")  # torch's product of fp32, rows picked by a printed kernel; int4 has templates of its own


def check(options: Options) -> None:
    """``OptionError`` where device="cuda" cannot be had, or a budget means nothing there."""
    if importlib.util.find_spec("triton") is None:
        raise OptionError("device='cuda' needs Triton, which is not installed: pip install 'adaflex[cuda]'")
    if not torch.cuda.is_available():
        raise OptionError(
            "device='cuda': torch sees no GPU on this machine; use device='cpu', or run where there is one"
        )
    if options.bits is not None:
        raise OptionError(f"bits={options.bits} counts what the CPU's kernels store; with device='cuda' give memory")
    if options.latency is not None and options.latency.share is not None:
        raise OptionError(f"latency='{options.latency.share}x' is a share of eager on the CPU; give a time, as '2ms'")


def on_host(model: nn.Module, calls: Calibration) -> tuple[nn.Module, Calibration]:
    """The model (a copy, where it lies on the device) and its calls in host memory, where they are captured."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type == "cuda" for tensor in tensors):
        model = copy.deepcopy(model).cpu()

    batches = [Batch(_on_host(each.args), _on_host(dict(each.kwargs))) for each in calls.batches]
    return model, Calibration(batches)


def _on_host(value: Any) -> Any:
    """The value with every tensor in lists, tuples and dicts in host memory."""
    if isinstance(value, Tensor):
        return value.cpu()
    if type(value) is dict:
        return {key: _on_host(each) for key, each in value.items()}
    return type(value)(map(_on_host, value)) if type(value) in (list, tuple) else value


def features() -> tuple[str, ...]:
    """What times on the device belong to."""
    return (torch.cuda.get_device_name(),) if torch.cuda.is_available() else ()


def offered(sites: Sites) -> Sites:
    """The sites with only the encodings that have a kernel on the device; what changes nothing is always left."""
    offers = {
        site: tuple(each for each in found if each == sites.keep[site] or has_kernel(each))
        for site, found in sites.offers.items()
    }
    return replace(sites, offers=offers)


def has_kernel(encoding: Encoding) -> bool:
    """Whether the device stores and multiplies this encoding as such."""
    return (_is_int4(encoding) or encoding.family in KINDS) and not encoding.sparsity


def _is_int4(encoding: Encoding) -> bool:
    return encoding.family == "w4" and encoding.group in w4_layout.GROUPS and not encoding.rotation


@lru_cache(maxsize=4096)
def stored_bytes(shape: tuple[int, ...], encoding: Encoding) -> int:
    """Bytes of a weight on the device: int4 as its templates read it, other products' weights decoded to fp32."""
    rows, columns = shape
    if "linear" not in kernel(MENU, encoding.family).ops:
        return kernel(MENU, encoding.family).size_bytes(shape, encoding)
    if not _is_int4(encoding):
        return 4 * rows * columns
    with torch.device("meta"):
        scale = torch.empty(rows, columns // encoding.group)
        zero = None if encoding.symmetric else scale.to(torch.uint8)
        return w4_layout.pack(torch.empty(rows, columns, dtype=torch.uint8), scale, zero, encoding.group).size_bytes


class _Workspace:
    """Stands in for the CPU's kernels where a layout is asked for: every slot whole, one step after the other."""

    whole = True

    def __init__(self, program: Program, kernels: Any) -> None:
        self.program, self.kernels = program, kernels

    def scratch_bytes(self, symbols: Sequence[int]) -> int:
        """The largest workspace of a product."""
        values: Mapping[str, int] = dict(zip(self.program.symbols, symbols, strict=True))
        steps = [number for number, step in enumerate(self.program.steps) if isinstance(step, GemmStep)]
        return max((self.kernels.workspace_bytes(number, values) for number in steps), default=0)

    def prepare(self, layout: Any) -> Any:
        """Nothing runs here."""
        raise OptionError("this program was planned for device='cuda'; plan it with device='cpu' to run it there")


class GpuExecutor(Executor):
    """A program on the device. The host's copy of it stays, to be saved."""

    def __init__(self, program: Program, weights: Tensor, max_concurrency: int = 1) -> None:
        from adaflex.codegen.triton_launch import kernels_for

        slim, constants, kernels = kernels_for(program, weights, MENU, DEVICE, f16=DEVICE == "cpu")
        super().__init__(program, weights, _Workspace(slim, kernels), threads=1, max_concurrency=max_concurrency)
        self.on_device = CudaExecutor(slim, constants, kernels, DEVICE, max_concurrency)

    def __call__(self, *inputs: Any) -> list[Tensor]:
        """Run once. Outputs lie where the inputs lay; of inputs on the device nothing is waited for."""
        home = next((each.device for each in inputs if isinstance(each, Tensor)), torch.device("cpu"))
        return [output.to(home) for output in self.on_device(*self.ready(inputs))]

    def ready(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs on the device."""
        return tuple(each.to(DEVICE) if isinstance(each, Tensor) else each for each in inputs)

    def wait(self) -> None:
        """Until the device has done everything it was asked for."""
        if DEVICE != "cpu":
            torch.cuda.synchronize()

    def memory(self, inputs: Sequence[Any]) -> dict[str, int]:
        """Planned bytes on the device for these sizes."""
        return {**self.on_device.memory(self.ready(inputs)), "ring": 0}

"""The program: steps over slots, the layout of the constants, and the order in which threads walk the steps.

In: made by codegen, or read from an artifact. Out: executed, saved, or rendered into kernels. Pure data.

Threads own rows, not steps: a segment is a run of native steps that share their groups (the batch entries). Where
there are enough groups each thread takes whole groups through all phases without waiting; else every thread takes its
share of the rows and all meet at a barrier between phases, because a phase may read rows of the phase before it.
Within a phase, a loop walks its steps block by block over the thread's own rows, so that a block stays in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from adaflex.runtime.region import Region, Size

# 1 and 2 had tables of fp32 beside weights in groups, where the kernels now read 16 bits.
FORMAT_VERSION = 3  # of programs whose constants all lie in memory
STREAMED_VERSION = 4  # of programs that stream some
WITH_WINDOWS = 2  # added where windows slide over images, which older readers do not know

ITEM_BYTES = {
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "f64": 8,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u8": 1,
    "bool": 1,
    "c64": 8,
    "c128": 16,
}


WINDOW_KINDS = ("patches", "depthwise", "max", "mean")


@dataclass(frozen=True)
class Slot:
    """A piece of memory that steps read and write: ``rows`` rows of ``row_bytes``."""

    kind: str  # "input", "output", "constant", "local" (in the arena), "value" (a tensor that a library op returned)
    form: str  # an entry of ITEM_BYTES, or an activation form ("u8t", "u8t-h128", "u8g64", ...)
    rows: Size
    columns: Size
    row_bytes: Size
    shape: tuple[Size, ...] = ()  # as a tensor, for library steps and outputs; () for activation forms
    window: str = "full"  # "full"; "group": only a thread's own groups are live; "block": only its block of rows
    constant: int = -1  # number of the constant, where kind is "constant"
    scalar: bool = False  # a zero-dimensional tensor (its shape is () as well)


@dataclass(frozen=True)
class Constant:
    """Bytes of the weights: ``offset`` is aligned to 64, and counted in the streamed bytes where ``tier`` is "disk"."""

    name: str  # of the site or tensor; for people and for errors, never part of generated text
    offset: int
    size_bytes: int
    form: str  # an entry of ITEM_BYTES, or the label of an encoding
    shape: tuple[int, ...]
    tier: str = "memory"
    digest: str = ""


@dataclass(frozen=True)
class Part:
    """A 64-byte aligned piece of a packed constant."""

    name: str
    offset: int


@dataclass(frozen=True)
class RowStep:
    """A region without template: pointwise chains, row reductions, gathers, folds."""

    region: Region
    label: str = ""


@dataclass(frozen=True)
class GemmStep:
    """y[r, n] = sum over k of a[r, k] * w[n, k], handed column by column to the epilogue region ("acc")."""

    a: int  # slot in the activation form that the kernel reads
    weight: int  # slot of the packed constant
    header: str  # file of the kernel library
    function: str  # its template
    parts: tuple[Part, ...]
    k: int
    n: int
    region: Region  # the epilogue; its rows are the rows of ``a``
    label: str = ""


@dataclass(frozen=True)
class Operand:
    """A strided tensor of up to four axes over a slot, in elements."""

    slot: int
    strides: tuple[Size, ...]
    offset: Size = 0


@dataclass(frozen=True)
class AttentionStep:
    """softmax(q kᵀ scale + mask) v. Axes: q [B, H, Q, D], k and v [B, K-heads, T, D], mask [B, H, Q, T], broadcast."""

    q: Operand
    k: Operand
    v: Operand
    mask: Operand | None
    out: Operand
    batch: Size
    heads: Size
    kv_heads: Size
    queries: Size
    keys: Size
    width: int  # D
    scale: float
    causal: bool
    bf16: bool  # arithmetic: bf16 products with fp32 sums, else fp32
    label: str = ""


@dataclass(frozen=True)
class WindowStep:
    """Windows that slide over images ``x`` [N, H, W, C]; row (n, oh, ow) of ``out`` is what one makes of its taps.

    "patches": the taps side by side, KH * KW * C columns; else C columns: "depthwise": their sum weighted by
    ``weight`` [KH * KW, C], "max": their maximum, "mean": their sum over their number. Outside of the image a tap is
    0, for "max" minus infinity. ``kernel``, ``stride`` and ``dilation`` each say (height, width), and ``padding``
    (top, left, bottom, right).
    """

    kind: str  # an entry of WINDOW_KINDS
    x: Operand
    weight: int  # slot of a constant in f32; -1: none
    out: int  # slot
    batch: Size
    height: Size
    width: Size
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    label: str = ""

    @property
    def taps(self) -> int:
        """Places of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def columns(self) -> int:
        """Columns of the result."""
        return self.channels * (self.taps if self.kind == "patches" else 1)

    def windows(self, axis: int, size: int) -> int:
        """How many windows there are along the height (axis 0) or the width (1) of an image of ``size``."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + self.padding[axis] + self.padding[axis + 2] - reach) // self.stride[axis] + 1


@dataclass(frozen=True)
class Argument:
    """An argument of a library op: exactly one field says what it is."""

    kind: str  # slot, int, float, complex, bool, str, none, size, dtype, list, layout, device or memory_format
    slot: int = -1
    number: float = 0.0
    size: Size = 0
    text: str = ""
    items: tuple[Argument, ...] = ()
    view: Operand | None = None  # "slot": read it through these strides ...
    shape: tuple[Size, ...] = ()  # ... with these sizes


@dataclass(frozen=True)
class LibraryStep:
    """One ATen op through torch: what no kernel of ours covers."""

    op: str  # "aten.<name>.<overload>"
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    outputs: tuple[int, ...]  # slots, -1 where an output is not used
    label: str = ""


Step = RowStep | GemmStep | AttentionStep | WindowStep | LibraryStep


@dataclass(frozen=True)
class Loop:
    """Steps over the same rows, row by row independent, walked in blocks of ``block`` rows (0: all at once)."""

    steps: tuple[int, ...]
    rows: Size
    block: int


@dataclass(frozen=True)
class Phase:
    """Loops between two meetings of the threads."""

    loops: tuple[Loop, ...]


@dataclass(frozen=True)
class Segment:
    """Native steps that run in one call; rows of one of its ``groups`` never read another's."""

    groups: Size
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class Prefetch:
    """A block of the tier schedule: the bytes of the streamed file that are read ahead together, in order of use.

    A block whose constants all lie in memory has no bytes; it keeps its place, because block b is read while block b-1
    is computed, and not before block b-2 is done.
    """

    first: int  # schedule entry before which its bytes must be there
    last: int  # schedule entry after which they are not needed any more
    offset: int = 0  # in the streamed bytes, a whole number of pages
    size_bytes: int = 0


@dataclass(frozen=True)
class Program:
    """Everything but the bytes of the weights and the built kernels."""

    symbols: tuple[str, ...]  # free sizes, each found at its source below
    sources: tuple[tuple[int, int], ...]  # symbol -> (input, axis); axis -1: the input itself is the number
    inputs: tuple[int, ...]  # slots; -1 for a symbolic number
    input_names: tuple[str, ...]
    outputs: tuple[int, ...]  # slots
    slots: tuple[Slot, ...]
    constants: tuple[Constant, ...]
    steps: tuple[Step, ...]
    schedule: tuple[Segment | int, ...]  # a segment, or the number of a library step
    ranges: tuple[tuple[int, int], ...] = ()  # lowest and highest value of each symbol (0: unknown)
    hints: tuple[int, ...] = ()  # value of each symbol at capture
    output_spec: str = ""  # how the outputs nest (torch's pytree description as JSON)
    notes: tuple[tuple[str, str], ...] = ()
    blocks: tuple[Prefetch, ...] = ()  # the tier schedule; () where nothing is streamed
    guards: tuple[tuple[str, Size, Size], ...] = ()  # what sizes must satisfy: ("<=", "s1", 8); see RELATIONS

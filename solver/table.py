"""The cost table: what can be decided, what each choice costs, and what the user allows.

In: nothing of AdaFlex. Out: the frozen dataclasses that scoring fills and solving reads. Bytes and nanoseconds are
Python ints; loss is a float that adds up over choices (a relative output error is stored squared).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Source = Literal["measured", "estimated", "bound"]


@dataclass(frozen=True)
class Site:
    """One weight tensor to decide about, with all its uses (tied tensors are one site)."""

    id: str  # qualified name, the first of its names where it is tied
    op: str  # "linear", "embedding", "conv2d", ...
    weight_count: int  # original number of weights
    original_bytes: int  # as the model stores it
    uses: tuple[str, ...] = ()  # identity of each use: "<module path>:<op>:<occurrence>"
    block: str = ""  # enclosing skippable block, "" where there is none
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoding:
    """How one weight tensor is stored and computed with. The family (a kernel file) gives the fields their meaning."""

    family: str  # kernel family: "fp32", "bf16", "w8a8", "w8", "w4", "w4a8", "embed8", ...
    bits: int = 32  # of one stored weight code
    group: int = 0  # weights per scale along the reduction axis; 0: one scale per output channel
    symmetric: bool = True
    rotation: int = 0  # block size of the Hadamard rotation along the reduction axis; 0: none
    rounding: str = "nearest"  # or "compensated" (second-order, column by column)
    sparsity: str = ""  # "", "2:4", "width:<kept>/<of>"

    def label(self) -> str:
        """Short name for tables: family, group, rotation, rounding."""
        parts = [self.family]
        if self.group:
            parts.append(f"g{self.group}")
        if not self.symmetric:
            parts.append("asym")
        if self.rotation:
            parts.append(f"h{self.rotation}")
        if self.rounding == "compensated":
            parts.append("comp")
        if self.sparsity:
            parts.append(self.sparsity)
        return "-".join(parts)


@dataclass(frozen=True)
class Cost:
    """What one choice costs. ``time_ns`` and ``stream_ns`` have one entry per phase of the table."""

    size_bytes: int  # stored bytes, scales and padding included
    time_ns: tuple[int, ...]
    loss: float  # additive
    workspace_bytes: int = 0  # extra live bytes while it runs
    stage_bytes: int = 0  # bytes it needs in the staging ring (streamed tiers only)
    stream_ns: tuple[int, ...] = ()  # time its link is busy, per phase (streamed tiers only)
    source: Source = "measured"  # of the time
    loss_source: Source = "measured"  # estimated: a time limit had passed
    spread: float = 0.0  # relative spread of the time measurement


@dataclass(frozen=True)
class Choice:
    """A column that covers one or more sites: an encoding on a tier, a skip, or fused siblings."""

    id: str  # unique in the table
    sites: tuple[str, ...]  # ids it covers
    cost: Cost
    encoding: Encoding | None = None  # None for a skip
    tier: str = "memory"
    axis: Literal["precision", "sparsity", "skip", "placement", "keep"] = "precision"
    requires: tuple[str, ...] = ()  # choice ids that must be taken when this one is (a fold needs its neighbour)
    activation: str = ""  # activation format class, for casts; "" never needs one
    label: str = ""


@dataclass(frozen=True)
class Cut:
    """The live bytes at one step: ``base_bytes`` whatever is chosen, plus the workspace of the choices alive there."""

    id: str
    base_bytes: int
    choices: tuple[str, ...] = ()  # ids of choices whose workspace is live here
    released: tuple[tuple[str, int], ...] = ()  # (choice id, bytes not live when that choice is taken), for skips


@dataclass(frozen=True)
class Link:
    """Choices over different sites must agree on an attribute: value -> the choices that have it, site by site."""

    id: str
    sites: tuple[str, ...]
    attribute: tuple[tuple[str, str], ...]  # (choice id, value)


@dataclass(frozen=True)
class Cast:
    """An edge whose ends may differ in activation format: costs time per phase when they do."""

    first: str  # site id
    second: str
    time_ns: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """An interaction: extra loss (of either sign) when both choices are taken."""

    first: str  # choice id
    second: str
    loss: float


@dataclass(frozen=True)
class Spacing:
    """At most ``most`` of these choices may be taken (skips of neighbouring blocks, number of skips)."""

    id: str
    choices: tuple[str, ...]
    most: int


@dataclass(frozen=True)
class Tier:
    """Where weights can live. The first tier of a table is where compute reads them; others stream through a ring."""

    name: str
    capacity_bytes: int | None = None  # None: unlimited
    bandwidth: tuple[tuple[int, int], ...] = ()  # (request bytes, bytes per second), ascending
    latency_ns: int = 0


@dataclass(frozen=True)
class Fixed:
    """What no choice changes."""

    size_bytes: int = 0  # constants that are no site
    time_ns: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class CostTable:
    """Everything the solver needs, and nothing of the model: a readable JSON file with a schema."""

    sites: tuple[Site, ...]
    choices: tuple[Choice, ...]
    phases: tuple[str, ...] = ("run",)
    fixed: Fixed = field(default_factory=Fixed)
    cuts: tuple[Cut, ...] = ()
    links: tuple[Link, ...] = ()
    casts: tuple[Cast, ...] = ()
    pairs: tuple[Pair, ...] = ()
    spacings: tuple[Spacing, ...] = ()
    tiers: tuple[Tier, ...] = (Tier("memory"),)
    blocks: tuple[tuple[str, ...], ...] = ()  # sites in execution order by block: the unit of prefetch
    ring_depth: int = 2  # blocks the staging ring holds: the one computed and those being loaded
    residual_format: str = "fp32"
    time_scale: tuple[int, int] = (1, 1)  # predicted latency = (fixed + sum) * numerator / denominator
    loss_kind: str = "squared relative error"
    default_loss: float = 0.0  # what casting everything to bf16 costs: the implied loss budget
    baseline_bytes: int = 0  # planned memory of the plan that changes nothing ("0.5x" is of this)
    baseline_ns: tuple[int, ...] = ()  # eager time here ("0.5x" latency is of this)
    machine: tuple[tuple[str, str], ...] = ()  # fingerprint the times belong to
    notes: tuple[tuple[str, str], ...] = ()  # (choice label on site, why it was not offered)


@dataclass(frozen=True)
class Budget:
    """What the user allows. Everything optional; bytes, nanoseconds, additive loss, milli-bits per weight: exact."""

    memory_bytes: int | None = None
    latency_ns: tuple[int | None, ...] = ()  # per phase
    loss: float | None = None  # additive units (a relative error of 0.03 is 0.0009 here)
    bits_milli: int | None = None  # thousandths of a bit per original weight
    tier_bytes: tuple[tuple[str, int], ...] = ()
    objective: Literal["", "loss", "latency", "memory", "bits"] = ""  # "": the default rule
    phase_weights: tuple[int, ...] = ()  # of each phase in a latency objective; (): one each
    implied_loss: bool = False  # ``loss`` was not asked for but implied; it is dropped, and said, where it cannot hold


@dataclass(frozen=True)
class Buffer:
    """A piece of memory with a life. Steps are half open: live in ``first <= step < end``."""

    id: str
    size_bytes: int
    first: int
    end: int
    alignment: int = 1
    gaps: tuple[tuple[int, int], ...] = ()  # half-open spans inside the life in which it may be overwritten
    offset: int | None = None  # pinned there
    alias: str = ""  # id of the buffer it shares its place with
    hint: int | None = None
    spaces: tuple[str, ...] = ()  # address spaces in order of preference; (): the only one

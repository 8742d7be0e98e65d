"""Skips as columns of the cost table: what leaving a block out saves, and what it costs.

In: the table of the other choices, the scores, the model. Out: the table with a column for each block that can be left
out. A column covers all its block's sites. What else the block takes (attention itself, norms, activations) must be
released with it, and no cost may be negative: so the block's first site carries that time on its other choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from adaflex.costing import taken_of
from adaflex.passes.capture import Capture
from adaflex.passes.decision import Decision
from adaflex.passes.residuals import Block
from adaflex.passes.restructure import without, work_of
from adaflex.passes.sites import Sites
from adaflex.solver.table import Choice, Cost, CostTable, Cut, Encoding, Spacing

ALIGNMENT = 64  # of constants


@dataclass(frozen=True)
class Release:
    """What a block takes beside its sites."""

    time_ns: int
    constant_bytes: int  # norms and biases that nothing else reads
    live_bytes: int  # the most live bytes of a model that keeps no other block


@dataclass(frozen=True)
class Releases:
    """Of every block that is no sum of others, and of the model without any."""

    blocks: Mapping[str, Release]
    floor_bytes: int  # live bytes with every block left out


def skip_id(block: Block) -> str:
    """The id of the choice that leaves the block out."""
    return f"{block.id}|skip {block.kind}"


def block_of(choice: Choice) -> str:
    """The id of the block that a skip leaves out."""
    return choice.id.partition("|")[0]


def own_blocks(sites: Sites) -> tuple[Block, ...]:
    """The blocks that are no sum of others."""
    return tuple(block for block in sites.blocks if block.kind != "layer")


@dataclass(frozen=True, eq=False)
class Meter:
    """How a model's decisions are measured: most live bytes over all sizes (laid out), nanoseconds (built and run)."""

    capture: Capture
    symbols: Mapping[str, int]  # in the timed call
    live_bytes: Callable[[Decision], int]
    time_ns: Callable[[Decision], int]


def measured(table: CostTable, sites: Sites, encodings: Mapping[str, Encoding], meter: Meter) -> Releases:
    """What each block takes beside its sites, with every site stored as ``encodings`` says."""
    blocks = own_blocks(sites)
    names = [block.id for block in blocks]
    site_ns = {
        site: choice.cost.time_ns[0] // len(choice.sites)
        for choice in taken_of(table.choices, encodings)
        for site in choice.sites
    }
    work = {block.id: work_of(meter.capture, sites, block, meter.symbols) for block in blocks}

    def saved_ns(group: Sequence[Block]) -> int:
        whole, less = (meter.time_ns(Decision(encodings, skipped)) for skipped in ((), tuple(b.id for b in group)))
        return whole - less

    times = shared_times(blocks, site_ns, work, saved_ns)
    found = {}
    for block in blocks:
        rest = tuple(name for name in names if name != block.id)
        live = meter.live_bytes(Decision(encodings, rest))
        found[block.id] = Release(times[block.id], _constant_bytes(meter.capture, sites, block), live)
    return Releases(found, meter.live_bytes(Decision(encodings, tuple(names))))


def _constant_bytes(capture: Capture, sites: Sites, block: Block) -> int:
    """Stored bytes of the constants that go with a block, its sites left out."""
    left = set(without(capture, sites, (block.id,)).places) | {sites.source[site][0] for site in block.sites}
    sizes = [each.size_bytes for place, each in enumerate(capture.constants) if place not in left]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def shared_times(
    blocks: Sequence[Block],
    site_ns: Mapping[str, int],
    work: Mapping[str, int],
    saved_ns: Callable[[Sequence[Block]], int],
) -> dict[str, int]:
    """Each block's own time: what leaving out all of its kind saved, less their sites, shared out by ``work``."""
    found = {}
    for kind in dict.fromkeys(block.kind for block in blocks):
        group = [block for block in blocks if block.kind == kind]
        rest = max(0, saved_ns(group) - sum(site_ns[site] for block in group for site in block.sites))
        total = sum(work[block.id] for block in group)
        for block in group:
            found[block.id] = rest * work[block.id] // total if total else rest // len(group)
    return found


def with_skips(table: CostTable, sites: Sites, losses: Mapping[str, float], releases: Releases) -> CostTable:
    """The table with a column for each block in ``losses``."""
    offered = [block for block in sites.blocks if block.id in losses]
    if not offered:
        return table
    parts = {block.id: releases.blocks[block.id] for block in own_blocks(sites)}
    carried = _carried(table, own_blocks(sites), parts)
    choices = [_carrying(choice, carried) for choice in table.choices]
    choices += [_column(block, losses[block.id], len(table.phases)) for block in offered]
    left = table.fixed.time_ns[0] - sum(carried.values())
    return replace(
        table,
        choices=tuple(choices),
        fixed=replace(table.fixed, time_ns=(left, *table.fixed.time_ns[1:])),
        cuts=tuple(new for cut in table.cuts for new in _cuts(cut, sites, offered, releases)),
        spacings=table.spacings + _spacings(offered),
        notes=table.notes + tuple(_note(site, time) for site, time in carried.items() if time),
    )


def _column(block: Block, loss: float, phases: int) -> Choice:
    cost = Cost(0, (0,) * phases, loss)
    return Choice(skip_id(block), block.sites, cost, axis="skip", label=f"skip {block.kind}")


def _carried(table: CostTable, blocks: Sequence[Block], parts: Mapping[str, Release]) -> dict[str, int]:
    """Site -> time that its choices carry for its block; never more than what no choice explains."""
    wanted = {block.sites[0]: parts[block.id].time_ns for block in blocks}
    most, total = table.fixed.time_ns[0], sum(wanted.values())
    return {site: time * most // total for site, time in wanted.items()} if total > most else wanted


def _carrying(choice: Choice, carried: Mapping[str, int]) -> Choice:
    extra = sum(carried.get(site, 0) for site in choice.sites)
    if not extra:
        return choice
    times = (choice.cost.time_ns[0] + extra, *choice.cost.time_ns[1:])
    return replace(choice, cost=replace(choice.cost, time_ns=times))


def _note(site: str, time: int) -> tuple[str, str]:
    return site, f"its times include {time / 1000:.1f} us of its block's other work, measured, which a skip releases"


def _cuts(cut: Cut, sites: Sites, offered: Sequence[Block], releases: Releases) -> list[Cut]:
    """The cut of the model without any block, and one for each block that is released with it.

    The most live bytes of a whole model are those of its hungriest block; what measuring found beyond that is kept.
    """
    highest = max((each.live_bytes for each in releases.blocks.values()), default=0)
    excess = max(0, cut.base_bytes - max(highest, releases.floor_bytes))
    constants = tuple((skip_id(block), _constants(block, sites, releases)) for block in offered)
    found = [replace(cut, base_bytes=releases.floor_bytes + excess, released=cut.released + constants)]
    for block in own_blocks(sites):
        base = releases.blocks[block.id].live_bytes + excess
        if base <= releases.floor_bytes + excess:
            continue
        freed = dict(constants)
        for other in offered:
            if set(block.sites) <= set(other.sites):
                freed[skip_id(other)] += base
        cut_id = f"{cut.id} of {block.id}"
        found.append(replace(cut, id=cut_id, base_bytes=base, released=cut.released + tuple(freed.items())))
    return found


def _constants(block: Block, sites: Sites, releases: Releases) -> int:
    """Bytes of constants that go with the block, or with the blocks that it is the sum of."""
    parts = [part for part in own_blocks(sites) if set(part.sites) <= set(block.sites)]
    return sum(releases.blocks[part.id].constant_bytes for part in parts)


def _spacings(offered: Sequence[Block]) -> tuple[Spacing, ...]:
    """A layer's two halves are left out as the layer, whose loss was measured, never as a sum of two losses."""
    found = []
    for layer in offered:
        if layer.kind == "layer":
            halves = [skip_id(part) for part in offered if part != layer and set(part.sites) <= set(layer.sites)]
            found.append(Spacing(f"halves of {layer.id}", tuple(halves), 1))
    return tuple(spacing for spacing in found if len(spacing.choices) > 1)

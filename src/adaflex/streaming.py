"""Which weights of a program can be streamed from disk, and marking those that a decision streams.

In: a capture with its sites, a draft, the decision's tiers. Out: blocks of prefetch; the draft with its constants'
tiers and blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaflex.codegen.draft import ConstantUse, Draft
from adaflex.errors import CaptureError
from adaflex.passes.capture import Capture
from adaflex.passes.prefetch import prefetch_blocks
from adaflex.passes.sites import Sites
from adaflex.runtime.program import GemmStep, RowStep

Blocks = Sequence[Sequence[str]]


def sites_by_node(capture: Capture, sites: Sites) -> dict[str, str]:
    """The site of each placeholder that holds a decided weight."""
    return {capture.constants[sites.source[site.id][0]].node: site.id for site in sites.sites}


def streamable(draft: Draft, site_of: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The sites that can be streamed, in the order in which the program uses them, by block of prefetch.

    A weight that is looked up by row, or used more than once, is in none: it stays in memory.
    """
    picked = {
        site_of.get(draft.constants[draft.slots[load.slot].constant].node)
        for step in draft.steps
        if isinstance(step, RowStep | GemmStep)
        for load in step.region.loads
        if load.gather >= 0 and draft.slots[load.slot].kind == "constant"
    }
    used = [
        site_of[draft.constants[draft.slots[step.weight].constant].node]
        for step in draft.steps
        if isinstance(step, GemmStep)
    ]
    packed = Counter(site_of[use.node] for use in draft.constants if use.encoding is not None)
    count = Counter(used)
    return prefetch_blocks(site for site in used if count[site] == 1 and packed[site] == 1 and site not in picked)


def staged(draft: Draft, site_of: Mapping[str, str], blocks: Blocks, tiers: Mapping[str, str]) -> Draft:
    """The draft with the tier and the block of each constant. ``CaptureError`` for a weight that cannot be streamed."""
    place = {site: number for number, block in enumerate(blocks) for site in block}
    for site, tier in tiers.items():
        if tier != "memory" and site not in place:
            raise CaptureError(f"'{site}' is looked up by row or used more than once; keep it in memory")

    def of(use: ConstantUse) -> ConstantUse:
        site = site_of.get(use.node, "") if use.encoding is not None else ""
        return replace(use, tier=tiers.get(site, "memory"), block=place.get(site, -1))

    return replace(draft, constants=tuple(of(use) for use in draft.constants))

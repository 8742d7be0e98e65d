"""The placement axis: choices that keep a weight on disk, and what the disk of this machine gives.

In: the table's choices in memory, the blocks of prefetch, a folder on the disk. Out: the same choices on disk, with
what they stage in the ring and how long they keep the disk busy; the ``Tier`` with its measured, cold speed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from adaflex.machine import fingerprint
from adaflex.native import cache_folder
from adaflex.runtime.artifact_file import Piece, replace_file
from adaflex.runtime.stream import PAGE, REQUEST, Stream, open_stream, padded, pages
from adaflex.runtime.stream_file import FOLDER
from adaflex.solver.table import Choice, CostTable, Link, Tier

REQUESTS = (PAGE, 64 << 10, 256 << 10, 1 << 20, REQUEST)  # bytes of the reads that are timed
READS = 8  # of each size, none of bytes that were read before
SUFFIX = "@disk"
SLOWDOWN = 20  # of what is computed while the disk is read: a twentieth of the time it takes (2 to 19 % were measured)


@dataclass(frozen=True)
class Placement:
    """What streaming needs to know: the blocks of prefetch in order of use, and the disk."""

    blocks: tuple[tuple[str, ...], ...]
    tier: Tier
    rings: int = 1  # one for each call that runs at the same time


def placed(table: CostTable, placement: Placement) -> CostTable:
    """The table with every choice of a streamed site on disk as well: same bytes and loss, none of them resident."""
    sites = {site for block in placement.blocks for site in block}
    more = [
        _on_disk(choice, placement)
        for choice in table.choices
        if len(choice.sites) == 1 and choice.sites[0] in sites and choice.encoding is not None
    ]
    return replace(
        table,
        choices=(*table.choices, *more),
        links=tuple(_with_copies(link, {choice.id for choice in more}) for link in table.links),
        tiers=(*table.tiers, placement.tier),
        blocks=placement.blocks,
    )


def _with_copies(link: Link, copies: Collection[str]) -> Link:
    """The link with the copies on disk of its choices: they have the same value."""
    more = ((name + SUFFIX, value) for name, value in link.attribute if name + SUFFIX in copies)
    return replace(link, attribute=(*link.attribute, *more))


def _on_disk(choice: Choice, placement: Placement) -> Choice:
    cost, tier = choice.cost, placement.tier
    busy = stream_ns(tier, cost.size_bytes)
    slower = tuple(each + busy // SLOWDOWN for each in cost.time_ns)
    return replace(
        choice,
        id=choice.id + SUFFIX,
        label=choice.label + SUFFIX,
        tier=tier.name,
        axis="placement",
        cost=replace(
            cost,
            time_ns=slower,
            stage_bytes=placement.rings * padded(cost.size_bytes),
            stream_ns=(busy,) * len(cost.time_ns),
        ),
    )


def stream_ns(tier: Tier, size: int) -> int:
    """How long the disk is busy with ``size`` bytes: whole requests of the largest size, then one for the rest."""
    largest = tier.bandwidth[-1][0]
    whole, rest = divmod(size, largest)
    return whole * _request_ns(tier, largest) + (_request_ns(tier, rest) if rest else 0)


def _request_ns(tier: Tier, size: int) -> int:
    """One request: between the sizes that were timed, time grows evenly with the bytes."""
    timed = [(request, request * 10**9 // speed) for request, speed in tier.bandwidth]
    if size <= timed[0][0]:
        return timed[0][1]
    for (low, early), (high, late) in itertools.pairwise(timed):
        if size <= high:
            return early + (late - early) * (size - low) // (high - low)
    return timed[-1][1]


def slower(table: CostTable, factor: float) -> CostTable:
    """The table for a disk that takes ``factor`` times as long as was measured."""

    def scaled(choice: Choice) -> Choice:
        busy = tuple(int(each * factor) for each in choice.cost.stream_ns)
        return replace(choice, cost=replace(choice.cost, stream_ns=busy))

    return replace(table, choices=tuple(scaled(choice) for choice in table.choices))


# ---- the disk ----
def disk() -> Tier:
    """The disk under the cache folder: measured once for this machine, then read from the cache."""
    folder = cache_folder(FOLDER)
    name = repr((fingerprint(1), folder.stat().st_dev, REQUESTS, READS))
    path = folder / f"speed-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    known = _known(path)
    if known is None:
        known = measured(folder)
        replace_file(path, [json.dumps({"bandwidth": known.bandwidth, "latency_ns": known.latency_ns}).encode()])
    return known


def _known(path: Path) -> Tier | None:
    try:
        found = json.loads(path.read_text())
        speeds = tuple((int(request), int(speed)) for request, speed in found["bandwidth"])
        latency = int(found["latency_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    good = [request for request, _ in speeds] == list(REQUESTS) and all(speed > 0 for _, speed in speeds)
    return Tier("disk", bandwidth=speeds, latency_ns=latency) if good else None


def measured(folder: Path) -> Tier:
    """Times reads of several sizes from a file of its own, each byte for the first time, past the page cache."""
    path = folder / f"probe-{time.time_ns()}.bin"
    total = READS * sum(REQUESTS)
    noise = np.random.default_rng(0).integers(0, 256, total, np.uint8)
    try:
        replace_file(path, [cast(Piece, noise.data)])
        stream = open_stream(path)
        stream.drop_cache()
        times = list(_times(stream))
    finally:
        path.unlink(missing_ok=True)
    speeds = tuple((request, max(1, request * 10**9 // taken)) for request, taken in zip(REQUESTS, times, strict=True))
    return Tier("disk", bandwidth=speeds, latency_ns=times[0])


def _times(stream: Stream) -> Sequence[int]:
    """Median nanoseconds of a read of each size; never less than that of a smaller one."""
    memory, at, found = pages(REQUEST).data, 0, [1]
    stream.read(memory[:PAGE], 0)
    for request in REQUESTS:
        taken = []
        for _ in range(READS):
            start = time.perf_counter_ns()
            stream.read(memory[:request], at)
            taken.append(time.perf_counter_ns() - start)
            at += request
        found.append(max(int(statistics.median(taken)), found[-1]))
    return found[1:]

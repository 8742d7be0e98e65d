"""Lets another graph of the same model run by a plan that was made already: same sites, same stored bytes.

In: programs that were planned, a capture that shares weights with them. Out: an ``Executor`` for that capture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaflex.assembly import Assembled, assemble, blocks_of, executor
from adaflex.codegen.draft import packed_form
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.decision import Decision
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.sites import Sites, find_sites
from adaflex.passes.widths import dense, kept_of
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import Constant
from adaflex.solver.table import Encoding

UNPACKED = ("kept", "shift")  # what a packed tensor does not say: the neurons that are left, what its bias gets


@dataclass(frozen=True, eq=False)
class Decided:
    """What was planned: a decision, and the program that holds its bytes."""

    decision: Decision
    assembled: Assembled
    extra: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # site -> its parts that are not packed

    def encoded(self, site: str, encoding: Encoding, shape: tuple[int, ...]) -> Encoded | None:
        """The site's tensor as this program stores it; None where it does not."""
        for constant in self.assembled.program.constants:
            if constant.name == site and constant.form == packed_form(dense(encoding)):
                made = kernel(MENU, encoding.family).unpack(self._bytes(constant), shape, dense(encoding))
                return Encoded(encoding, made.shape, {**made.parts, **self.extra.get(site, {})})
        return None

    def _bytes(self, constant: Constant) -> Tensor:
        if constant.tier == "memory" or self.assembled.stream is None:
            return self.assembled.weights[constant.offset : constant.offset + constant.size_bytes]
        return torch.from_numpy(self.assembled.stream.load_part(constant.offset, constant.size_bytes))


def adopt(earlier: Sequence[Decided], capture: Capture, weights: Weights, here: Machine, calls: int) -> Executor:
    """A program for ``capture`` in which known sites and blocks keep their choices; others stay as they are.

    ``calls``: how many calls may run at once.
    """
    sites = find_sites(capture, weights, MENU, here)
    by_id = {site.id: site for site in sites.sites}
    blocks = {block.id for block in sites.blocks}
    known: dict[str, Encoding] = {}
    skipped: list[str] = []
    tiers: dict[str, str] = {}
    streamed = any(decided.decision.tiers for decided in earlier)
    streams = {site for block in blocks_of(capture, sites) for site in block} if streamed else set()
    for decided in earlier:
        known |= {site: encoding for site, encoding in decided.decision.encodings.items() if site in by_id}
        skipped += [name for name in decided.decision.skipped if name in blocks]
        tiers |= {site: tier for site, tier in decided.decision.tiers.items() if site in streams}

    known = {site: encoding for site, encoding in known.items() if _fits(sites, known, site)}

    def provide(site: str, encoding: Encoding) -> Encoded:
        for decided in earlier:
            found = decided.encoded(site, encoding, sites.shape(by_id[site], encoding))
            if found is not None:
                return found
        weight = sites.weight(weights, site).detach().float()
        return kernel(MENU, encoding.family).encode(weight, encoding, None)

    return executor(assemble(capture, weights, sites, Decision(known, tuple(skipped), tiers), provide), here, calls)


def _fits(sites: Sites, known: Mapping[str, Encoding], site: str) -> bool:
    """Whether this graph can do what was decided: neurons are removed only where all that share them are in it."""
    kept, mlp = kept_of(known[site]), sites.mlp(site)
    if kept is None:
        return True
    return mlp is not None and all(each in known and kept_of(known[each]) == kept for each in mlp.sites)

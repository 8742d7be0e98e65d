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
from adaflex.passes.score_cache import inputs_digest
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
    digests: Mapping[str, str]  # site -> of the weight that it was decided for
    extra: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # site -> its parts that are not packed

    def same_site(self, site: str, digest: str) -> str | None:
        """The site that was decided for this weight: of this name, else of any name where another graph folds it.

        Names of folded weights are numbers, which differ between graphs; a weight of another value is another weight.
        """
        if self.digests.get(site) == digest:
            return site
        return next((name for name, known in self.digests.items() if known == digest), None)

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
    origin: dict[str, tuple[Decided, str]] = {}
    skipped: list[str] = []
    tiers: dict[str, str] = {}
    streamed = any(decided.decision.tiers for decided in earlier)
    streams = {site for block in blocks_of(capture, sites) for site in block} if streamed else set()
    digests = site_digests(sites, weights)
    for decided in earlier:
        skipped += [name for name in decided.decision.skipped if name in blocks]
        for site, digest in digests.items():
            was = decided.same_site(site, digest)
            if was is not None and was in decided.decision.encodings:
                known[site], origin[site] = decided.decision.encodings[was], (decided, was)
                if was in decided.decision.tiers and site in streams:
                    tiers[site] = decided.decision.tiers[was]

    known = {site: encoding for site, encoding in known.items() if _fits(sites, known, site)}

    def provide(site: str, encoding: Encoding) -> Encoded:
        if site in known:
            decided, was = origin[site]
            found = decided.encoded(was, encoding, sites.shape(by_id[site], encoding))
            if found is not None:
                return found
        weight = sites.weight(weights, site).detach().float()
        return kernel(MENU, encoding.family).encode(weight, encoding, None)

    return executor(assemble(capture, weights, sites, Decision(known, tuple(skipped), tiers), provide), here, calls)


def site_digests(sites: Sites, weights: Weights) -> dict[str, str]:
    """A digest of every site's weight."""
    return {site.id: inputs_digest([[sites.weight(weights, site.id)]]) for site in sites.sites}


def _fits(sites: Sites, known: Mapping[str, Encoding], site: str) -> bool:
    """Whether this graph can do what was decided: neurons are removed only where all that share them are in it."""
    kept, mlp = kept_of(known[site]), sites.mlp(site)
    if kept is None:
        return True
    return mlp is not None and all(each in known and kept_of(known[each]) == kept for each in mlp.sites)

"""Encodes weights as they would ship: repaired with what calibration tells of each layer's own inputs.

In: a Capture, weights, Sites, menu and Samples. Out: ``Encoded`` tensors, the same ones however often they are asked
for: codes are held, plain casts made anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from adaflex.passes.calibration import Inputs, Samples
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.menu import Encoded, Menu, family
from adaflex.passes.repair import Statistics, bias_shift, repair_gram, statistics
from adaflex.passes.sites import Sites
from adaflex.passes.suffix import Cursor
from adaflex.passes.widths import Mlp, Shrunk, bias_of, dense, kept_of, shrink
from adaflex.solver.table import Encoding

log = logging.getLogger("adaflex.passes")

HELD_BYTES = 1 << 30  # of codes held in memory; beyond, tensors are encoded anew when asked for


class Store(Protocol):
    """Where repaired tensors are kept between runs: see passes/encoded_cache.py."""

    def get(self, site: str, encoding: Encoding) -> Encoded | None:
        """The tensor kept for this choice."""

    def put(self, site: str, encoded: Encoded) -> None:
        """Keep it."""


class Encoder:
    """Encoded weights of one model, by site and encoding; what plans took is kept in ``store``."""

    def __init__(
        self,
        capture: Capture,
        weights: Weights,
        sites: Sites,
        menu: Menu,
        data: Samples,
        store: Store | None = None,
    ) -> None:
        self.capture, self.weights, self.sites, self.menu, self.data = capture, weights, sites, menu, data
        self.store = store
        self.notes: list[tuple[str, str]] = []
        self._held: dict[tuple[str, Encoding], Encoded] = {}
        self._stored: set[tuple[str, Encoding]] = set()  # what the store has
        self._bytes = 0
        self._last: tuple[fx.Node, Statistics] | None = None
        self._last_mlp: tuple[str, Statistics] | None = None
        self._shrunk: dict[tuple[str, int], Shrunk] = {}

    def cursor(self, calls: Sequence[Inputs]) -> Cursor:
        """A cursor at the graph's start."""
        return Cursor(self.capture, self.weights, calls)

    def encoded(self, chosen: Mapping[str, Encoding]) -> dict[str, Encoded]:
        """The tensors of a plan, in one pass over the model where statistics are needed."""
        repaired = {site: encoding for site, encoding in chosen.items() if _needs_data(encoding)}
        found = {site: self._encode(site, chosen[site], None) for site in chosen if site not in repaired}
        for site, encoding in repaired.items():
            kept = self._kept(site, encoding)
            if kept is not None:
                found[site] = kept
        cursor: Cursor | None = None
        rest = set(repaired) - set(found)
        for site in sorted(rest, key=lambda each: self._place(each)):
            cursor = cursor or self.cursor(self.data.fit)
            cursor.advance(self.sites.uses[site][0])
            found[site] = self.encode_at(cursor, site, chosen[site])
        if self.store is not None:
            for site, encoding in repaired.items() - self._stored:
                self.store.put(site, found[site])
                self._stored.add((site, encoding))
        return {site: found[site] for site in chosen}

    def _kept(self, site: str, encoding: Encoding) -> Encoded | None:
        """The repaired tensor, from memory or from the store."""
        known = self._held.get((site, encoding))
        if known is None and self.store is not None:
            known = self.store.get(site, encoding)
            if known is not None:
                self._hold(site, encoding, known)
                self._stored.add((site, encoding))
        return known

    def _place(self, site: str) -> int:
        names = [node.name for node in self.capture.graph.graph.nodes]
        return names.index(self.sites.uses[site][0])

    def encode_at(self, cursor: Cursor, site: str, encoding: Encoding) -> Encoded:
        """The site's tensor, with the cursor (over the fitting calls) standing before its first use."""
        known = self._held.get((site, encoding))
        if known is not None:
            return known
        if kept_of(encoding) is not None:
            return self._encode_narrow(cursor, site, encoding)
        if encoding.rounding != "compensated":
            return self._encode(site, encoding, None)
        gram = self._gram(cursor, site)
        return self._encode(site, encoding, gram, None if gram is not None else self._mean(cursor, site))

    def _encode_narrow(self, cursor: Cursor, site: str, encoding: Encoding) -> Encoded:
        """What is left of a site of an mlp; ups say which neurons, so that biases follow."""
        mlp, kept = self.sites.mlp(site), kept_of(encoding)
        assert mlp is not None and kept is not None
        small = self._shrunk_at(cursor, mlp, kept)
        gram: Tensor | None = None
        if site == mlp.down:
            weight, extra = small.down, {}
            if encoding.rounding == "compensated":
                whole = repair_gram(self._inner(cursor, mlp))
                gram = None if whole is None else whole[small.kept][:, small.kept]
        else:
            weight, extra = self._weight(site)[small.kept], {"kept": small.kept}
            if encoding.rounding == "compensated":
                gram = self._gram(cursor, site)
        made = family(self.menu, encoding.family).encode(weight, dense(encoding), gram)
        made = Encoded(encoding, made.shape, {**made.parts, **extra})
        self._hold(site, encoding, made)
        return made

    def _shrunk_at(self, cursor: Cursor, mlp: Mlp, kept: int) -> Shrunk:
        """Which neurons stay, and the refitted down-projection; the cursor stands before the mlp or its last site."""
        if (mlp.id, kept) not in self._shrunk:
            found = self._inner(cursor, mlp)
            if not found.trusted():
                self._say_few(found, mlp.down)
            self._shrunk[mlp.id, kept] = shrink(self._weight(mlp.down), found, kept)
        return self._shrunk[mlp.id, kept]

    def _inner(self, cursor: Cursor, mlp: Mlp) -> Statistics:
        """Of the neurons' values; those of the last mlp are held."""
        if self._last_mlp is None or self._last_mlp[0] != mlp.id:
            name = self.sites.uses[mlp.down][0]
            x: Any = cursor.node(name).args[0]
            self._last_mlp = (mlp.id, self._statistics(values[x] for values in cursor.ahead(name)))
        return self._last_mlp[1]

    def _weight(self, site: str) -> Tensor:
        return self.sites.weight(self.weights, site).detach().float()

    def _statistics(self, inputs: Iterable[Any]) -> Statistics:
        mask = self.data.mask
        masks = [None if mask is None else call[mask] for call in self.data.fit]
        return statistics(zip(inputs, masks, strict=True))

    def _mean(self, cursor: Cursor, site: str) -> Statistics | None:
        """What rounding to nearest is corrected by in the mean: of sites used once, with a bias of their own."""
        bias = bias_of(cursor.node(self.sites.uses[site][0]))
        constants = {constant.node for constant in self.capture.constants}
        own = bias is not None and bias.name in constants and len(bias.users) == 1
        return self._last[1] if own and self._last is not None and len(self.sites.uses[site]) == 1 else None

    def _encode(self, site: str, encoding: Encoding, gram: Tensor | None, mean: Statistics | None = None) -> Encoded:
        entry = family(self.menu, encoding.family)
        made = entry.encode(self._weight(site), encoding, gram)
        if mean is not None:
            shift = bias_shift(self._weight(site) - entry.decode(made), mean)
            extra = {} if shift is None else {"shift": shift}
            made = Encoded(made.encoding, made.shape, {**made.parts, **extra})
        if encoding.rounding == "compensated":
            self._hold(site, encoding, made)
        return made

    def _hold(self, site: str, encoding: Encoding, made: Encoded) -> None:
        size = sum(part.numel() * part.element_size() for part in made.parts.values())
        if self._bytes + size <= HELD_BYTES:
            self._held[site, encoding] = made
            self._bytes += size

    def _gram(self, cursor: Cursor, site: str) -> Tensor | None:
        """Of the linear's input; siblings share one. None, said once, where there are too few rows."""
        first, name = self.sites.uses[site][0], self._product(cursor, site)
        x: Any = cursor.node(name).args[0]
        if self._last is None or self._last[0] is not x:
            before = cursor.values if name == first else cursor.ahead(name)  # a tied table is looked up first
            self._last = (x, self._statistics(values[x] for values in before))
        found = repair_gram(self._last[1])
        if found is None:
            self._say_few(self._last[1], site)
        return found

    def _product(self, cursor: Cursor, site: str) -> str:
        """The first of the site's uses that multiplies by it."""
        return next(use for use in self.sites.uses[site] if cursor.node(use).target is torch.ops.aten.linear.default)

    def _say_few(self, found: Statistics, site: str) -> None:
        if not any(name == "repair" for name, _ in self.notes):
            text = (
                f"calibration gives {found.rows} rows for the {len(found.gram)} inputs of {site}: too few for "
                "second-order repair, rounded to nearest with searched clipping, narrowed without a refit; give more"
            )
            self.notes.append(("repair", text))
            log.warning(text)


def _needs_data(encoding: Encoding) -> bool:
    """Whether the tensor depends on calibration: it is repaired, or refitted."""
    return encoding.rounding == "compensated" or kept_of(encoding) is not None

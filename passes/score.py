"""Measures what each choice costs: the model's own loss with only that choice made, as the tensor that would ship.

In: a Capture, one set of weights, its Sites, the menu, calibration data. Out: ``Scores``: an additive loss for every
(site, encoding) and skippable block, the loss of casting everything to bf16, and the encoded tensors themselves.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from adaflex.passes.calibration import Calibration, Inputs, Samples, samples
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.encoder import Encoder, Store
from adaflex.passes.estimate import Estimator
from adaflex.passes.losses import Judge, Loss
from adaflex.passes.menu import Encoded, Menu, family
from adaflex.passes.rewrite import Reference, arguments_of
from adaflex.passes.sites import Sites
from adaflex.passes.suffix import Change, Cursor, Values
from adaflex.passes.widths import Mlp, kept_of, with_width
from adaflex.solver.table import Encoding

log = logging.getLogger("adaflex.passes")

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what was just scored)."""


class Cache(Protocol):
    """Where losses are kept between runs: see passes/score_cache.py."""

    def get(self, name: str) -> float | None:
        """The loss stored under this name."""

    def put(self, name: str, loss: float) -> None:
        """Store it; an interrupted run finds it again."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Additive losses of single choices, and what they were measured with."""

    loss: Mapping[tuple[str, Encoding], float]
    source: Mapping[tuple[str, Encoding], str]  # "measured", or "estimated" where the time limit cut it
    skip_loss: Mapping[str, float]  # block id -> loss of skipping it
    bf16_loss: float  # of casting the model to bf16: what an absent loss budget means
    kind: str  # what the loss is: "squared relative error", "KL divergence", ...
    notes: tuple[tuple[str, str], ...]
    encoder: Encoder
    held: Judge | None = field(default=None, repr=False)  # over the samples held out; None where there are too few
    fit: Judge | None = field(default=None, repr=False)

    def encoded(self, site: str, encoding: Encoding) -> Encoded:
        """The repaired tensor that was scored; its ``encoding.rounding`` says what repair could be done."""
        return self.encoder.encoded({site: encoding})[site]

    def tensors(self, chosen: Mapping[str, Encoding]) -> dict[str, Encoded]:
        """The repaired tensors of a plan, by site: one pass over the model for those not held any more."""
        return self.encoder.encoded(chosen)

    def plan_loss(self, chosen: Mapping[str, Encoding], skipped: Iterable[str] = (), *, held: bool = True) -> float:
        """The measured loss of a whole plan, on the held-out samples where there are any."""
        judge = self.held if held and self.held is not None else self.fit
        assert judge is not None
        return joint_loss(self.encoder, judge, self.encoder.encoded(chosen), skipped)


def score(
    capture: Capture,
    weights: Weights,
    sites: Sites,
    menu: Menu,
    calibration: Calibration,
    *,
    loss: Loss = "error",
    progress: Progress | None = None,
    deadline: float | None = None,
    cache: Cache | None = None,
    store: Store | None = None,
) -> Scores:
    """Measure every offer of every site, and every skippable block, on the calibration's fitting part.

    ``deadline`` is in ``time.monotonic()`` seconds: what is left then is estimated from one backward pass, and said in
    ``notes``; ``cache`` keeps losses, ``store`` the repaired tensors of plans. Raises CalibrationError where the data
    does not fit the model or the output cannot be compared.
    """
    data = samples(capture, calibration, whole=callable(loss))
    encoder = Encoder(capture, weights, sites, menu, data, store)
    judges = [_judge(capture, weights, data, calls, loss) for calls in (data.fit, data.held) if calls]
    held = judges[1] if len(judges) > 1 and not callable(loss) else None
    run = _Run(encoder, judges[0], cache, deadline, progress, held)
    run.score_sites()
    run.score_blocks()
    stored = run.remembered("bf16", lambda: joint_loss(encoder, judges[0], encoder.encoded(bf16_plan(sites))))
    cast = run.remembered("cast to bf16", lambda: cast_loss(capture, weights, judges[0]))
    bf16 = max((each for each in (stored, cast) if math.isfinite(each)), default=0.0)  # what overflows says nothing
    run.notes += encoder.notes
    return Scores(run.loss, run.source, run.skips, bf16, judges[0].kind, tuple(run.notes), encoder, held, judges[0])


def cast_loss(capture: Capture, weights: Weights, judge: Judge) -> float:
    """The loss of the model cast to bf16, weights and activations; 0 where it cannot run so."""
    cast = narrow(weights)
    try:
        return judge(lambda call: capture.run_by(Narrow, cast, narrow(judge.calls[call])))
    except RuntimeError as fault:
        log.info("the model does not run in bf16 (%s)", str(fault).splitlines()[0])
        return 0.0


def narrow(values: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The values with every tensor of floats in ``dtype``, tuples and lists searched."""
    return fx.node.map_aggregate(
        values, lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
    )


class Narrow(fx.Interpreter):
    """Runs a graph on bf16. An op that refuses its mixture of dtypes, as casts written into the model leave it, gets
    all its floats in bf16; one that has no bf16 form is computed in fp32 and rounded."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_function(target, args, kwargs)
        except RuntimeError:
            pass
        try:
            return super().call_function(target, narrow(args), narrow(kwargs))
        except RuntimeError:
            wide = narrow(args, torch.float32), narrow(kwargs, torch.float32)
            return narrow(super().call_function(target, *wide))


def bf16_plan(sites: Sites) -> dict[str, Encoding]:
    """Every site in its 16-bit form, or kept where it has none."""
    return {
        name: next((each for each in offers if each.bits == 16), sites.keep[name])
        for name, offers in sites.offers.items()
    }


def name_of(site: str, encoding: Encoding) -> str:
    """Under which a loss is cached: unique, and readable."""
    return f"{site} | {encoding.label()}{'' if encoding.symmetric else ' asym'}"


def joint_loss(encoder: Encoder, judge: Judge, chosen: Mapping[str, Encoded], skipped: Iterable[str] = ()) -> float:
    """The measured loss with all these choices made at once."""
    cursor = encoder.cursor(judge.calls)
    changes: dict[fx.Node, Change] = {}
    for site, encoded in chosen.items():
        if encoded.encoding != encoder.sites.keep[site]:
            changes |= site_changes(cursor, encoder.sites, encoder.menu, site, encoded)
    blocks = {block.id: block for block in encoder.sites.blocks}
    for name in skipped:
        changes |= skip_changes(cursor, blocks[name].adds)
    return judge(lambda call: cursor.run(call, changes))


def site_changes(cursor: Cursor, sites: Sites, menu: Menu, site: str, encoded: Encoded) -> dict[fx.Node, Change]:
    """Each use of the site computed by its family's reference body."""
    reference = Reference(family(menu, encoded.encoding.family), encoded)

    def change(node: fx.Node) -> Change:
        return lambda values: reference(*fx.node.map_arg(arguments_of(node), values.__getitem__))

    return {cursor.node(use): change(cursor.node(use)) for use in sites.uses[site]}


def skip_changes(cursor: Cursor, adds: Sequence[tuple[str, str]]) -> dict[fx.Node, Change]:
    """Each residual add gives the operand that goes around its branch."""

    def change(kept: fx.Node) -> Change:
        def take(values: Values) -> object:
            return values[kept]

        return take

    return {cursor.node(add): change(cursor.node(kept)) for add, kept in adds}


def _judge(capture: Capture, weights: Weights, data: Samples, calls: Sequence[Inputs], loss: Loss) -> Judge:
    wanted = not callable(loss) or calls is data.fit
    originals = (lambda: [capture.run(weights, inputs) for inputs in calls]) if wanted else None
    return Judge(capture, data, calls, loss, originals)


class _Run:
    """One pass over the sites in graph order; finished losses go to the cache at once."""

    def __init__(
        self,
        encoder: Encoder,
        judge: Judge,
        cache: Cache | None,
        deadline: float | None,
        progress: Progress | None,
        unseen: Judge | None = None,
    ) -> None:
        self.encoder, self.judge, self.cache = encoder, judge, cache
        self.unseen = unseen or judge  # of widths: a refit has as many unknowns as there are rows, nearly
        self.unseen_cursor: Cursor | None = None
        self.deadline, self.progress = deadline, progress
        self.sites = encoder.sites
        self.loss: dict[tuple[str, Encoding], float] = {}
        self.source: dict[tuple[str, Encoding], str] = {}
        self.skips: dict[str, float] = {}
        self.notes: list[tuple[str, str]] = list(self.sites.notes)
        self.done = 0
        self.total = sum(map(len, self.sites.offers.values())) + len(self.sites.blocks) + 2  # and two of bf16
        self.cut = 0
        self.estimator: Estimator | None = None

    def late(self) -> bool:
        """Whether the time limit has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def remembered(self, name: str, measure: Callable[[], float]) -> float:
        """The cached loss, or a measured one that is cached."""
        found = self.cache.get(name) if self.cache else None
        if found is None:
            found = measure()
            if self.cache:
                self.cache.put(name, found)
        self.tell(name)
        return found

    def tell(self, name: str) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, name)

    def score_sites(self) -> None:
        cursor = self.encoder.cursor(self.judge.calls)
        for site in in_graph_order(self.sites, cursor):
            own = [each for each in self.sites.offers[site] if kept_of(each) is None]
            missing = [each for each in own if not self._known(site, each)]
            narrow = self._missing_widths(site)
            if missing or narrow:
                cursor.advance(self.sites.uses[site][0])
            for encoding in missing:
                self._score(cursor, site, encoding)
            for kept in narrow:
                self._score_width(cursor, kept)
        if self.cut:
            text = f"{self.cut} of {self.total} choices were estimated, not measured: the time limit had passed"
            self.notes.append(("time limit", text))
            log.warning(text)

    def _known(self, site: str, encoding: Encoding) -> bool:
        """Fill in what needs no measuring: the choice that changes nothing, and what the cache holds."""
        if (site, encoding) in self.loss:
            return True
        found = 0.0 if encoding == self.sites.keep[site] else None
        if found is None and self.cache:
            found = self.cache.get(name_of(site, encoding))
        if found is None:
            return False
        self.loss[site, encoding], self.source[site, encoding] = found, "measured"
        self.tell(name_of(site, encoding))
        return True

    def _missing_widths(self, site: str) -> list[tuple[Mlp, int]]:
        """Widths of the mlp that begins with this site which the cache does not know whole."""
        mlp = self.sites.mlp(site)
        if mlp is None or mlp.sites[0] != site:
            return []
        offers = [(name, each) for name in mlp.sites for each in self.sites.offers[name]]
        counts = sorted({kept for _, each in offers if (kept := kept_of(each)) is not None}, reverse=True)
        known = {kept: [self._known(name, each) for name, each in offers if kept_of(each) == kept] for kept in counts}
        return [(mlp, kept) for kept in counts if not all(known[kept])]

    def _score_width(self, cursor: Cursor, of: tuple[Mlp, int]) -> None:
        """Every offer of an mlp at one width: the loss of the removed neurons counts at its first site, and what an
        encoding adds to it at that encoding's site. Measured on samples held out, where there are any: on those that
        the refit was made of it would look better than it is (MiniLM at half its width, one layer: 0.07 for 0.13)."""
        mlp, kept = of
        if self.late():
            self.notes.append((mlp.sites[0], f"is not offered {kept} neurons: the time limit had passed"))
            return
        plain = {site: with_width(self.sites.keep[site], kept, mlp.neurons) for site in mlp.sites}
        self.unseen_cursor = self.unseen_cursor or self.encoder.cursor(self.unseen.calls)
        self.unseen_cursor.advance(self.sites.uses[mlp.sites[0]][0])
        base = self._joint(cursor, plain)
        for site in mlp.sites:
            for encoding in [each for each in self.sites.offers[site] if kept_of(each) == kept]:
                if (site, encoding) not in self.loss:
                    found = base if encoding == plain[site] else self._joint(cursor, {**plain, site: encoding})
                    found = found if site == mlp.sites[0] else max(0.0, found - base)
                    self._put(site, encoding, found)
                    self.tell(name_of(site, encoding))

    def _joint(self, cursor: Cursor, chosen: Mapping[str, Encoding]) -> float:
        """The loss with all these choices made, both cursors standing before the first."""
        unseen, changes = self.unseen_cursor, dict[fx.Node, Change]()
        assert unseen is not None
        for site, encoding in chosen.items():
            encoded = self.encoder.encode_at(cursor, site, encoding)
            changes |= site_changes(cursor, self.sites, self.encoder.menu, site, encoded)
        return self.unseen(lambda call: unseen.run(call, changes))

    def _put(self, site: str, encoding: Encoding, found: float) -> None:
        self.loss[site, encoding], self.source[site, encoding] = found, "measured"
        if self.cache:
            self.cache.put(name_of(site, encoding), found)

    def _score(self, cursor: Cursor, site: str, encoding: Encoding) -> None:
        encoded = self.encoder.encode_at(cursor, site, encoding)
        changes = site_changes(cursor, self.sites, self.encoder.menu, site, encoded)
        if self.late():
            self._estimate(site, encoding, encoded)
        else:
            self._put(site, encoding, self.judge(lambda call: cursor.run(call, changes)))
        self.tell(name_of(site, encoding))

    def _estimate(self, site: str, encoding: Encoding, encoded: Encoded) -> None:
        self.cut += 1
        if self.estimator is None:
            self.estimator = Estimator(self.encoder, self.judge)
        self.loss[site, encoding] = self.estimator.loss(site, encoded)
        self.source[site, encoding] = "estimated"

    def score_blocks(self) -> None:
        cursor = self.encoder.cursor(self.judge.calls)
        for block in sorted(self.sites.blocks, key=lambda each: cursor.place[each.adds[0][0]]):
            name = f"skip {block.id}"
            if self.late() and not (self.cache and self.cache.get(name) is not None):
                self.notes.append((block.id, "is not offered as a skip: the time limit had passed"))
                self.tell(name)
                continue
            cursor.advance(block.adds[0][0])
            changes = skip_changes(cursor, block.adds)
            self.skips[block.id] = self.remembered(name, lambda: self.judge(lambda call: cursor.run(call, changes)))  # noqa: B023


def in_graph_order(sites: Sites, cursor: Cursor) -> list[str]:
    """Sites by the place of their first use."""
    return sorted(sites.uses, key=lambda site: cursor.place[sites.uses[site][0]])

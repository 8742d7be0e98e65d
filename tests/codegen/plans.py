"""Random legal plans: skipped blocks, neurons left out, an encoding for every site, out of all that its kernels read.

In: a case, a seed. Out: the decision, the reference graph that it stands for, the program made of it.
A family on the menu is met here without being named: what it offers, and what it supports beside that.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from adaflex.assembly import assemble
from adaflex.codegen.kernels.family import Kernel, kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.decision import Decision
from adaflex.passes.menu import TIED, Encoded, Machine
from adaflex.passes.rewrite import rewrite
from adaflex.passes.sites import Sites, find_sites
from adaflex.passes.widths import dense, kept_of, shape_of, widths, with_width
from adaflex.runtime.program import AttentionStep, Program
from adaflex.solver.table import Encoding, Site
from tests.codegen.graphs import Case

MACHINE = Machine("avx512", 2)
GROUPS = (0, 32, 64, 128)
ROTATIONS = (0, 64, 128)


@dataclass(frozen=True, eq=False)
class Planned:
    """A graph under a plan: what it means, and the program that should compute it."""

    decision: Decision
    reference: fx.GraphModule
    program: Program
    weights: Tensor

    @property
    def label(self) -> str:
        """Its encodings and what it skips."""
        labels = sorted({encoding.label() for encoding in self.decision.encodings.values()})
        return ", ".join((*labels, *(f"without {block}" for block in self.decision.skipped)))

    @property
    def bf16_attention(self) -> bool:
        """Does the program multiply in bf16 where the reference, which changes linears only, does not?"""
        return any(isinstance(step, AttentionStep) and step.bf16 for step in self.program.steps)


def legal(entry: Kernel, site: Site) -> list[Encoding]:
    """What the family offers this site, and its other groups, symmetries and rotations as far as kernels read them."""
    if site.op == TIED:  # rows can be picked out of what is offered, and of nothing else
        return list(entry.offers(site, MACHINE))
    found: dict[Encoding, None] = {}
    for offer in entry.offers(site, MACHINE):
        for group, even, turn in itertools.product(GROUPS, (True, False), ROTATIONS):
            other = dataclasses.replace(offer, group=group, symmetric=even, rotation=turn)
            if entry.supports(site.shape, other):
                found[other] = None
    return list(found)


def random_plan(sites: Sites, rng: random.Random) -> Decision:
    """Each block left out or not, mlps with all their neurons or fewer, and one legal encoding for each site that is
    left: a family first, then one of its forms, so that families are met equally often."""
    skipped = tuple(block.id for block in sites.blocks if block.kind != "layer" and rng.random() < 0.3)
    gone = {site for block in sites.blocks if block.id in skipped for site in block.sites}
    narrow = {
        mlp.id: rng.choice((*widths(mlp.neurons), rng.randint(1, mlp.neurons - 1)))
        for mlp in sites.mlps
        if not gone & set(mlp.sites) and mlp.neurons > 1 and rng.random() < 0.5
    }
    made = {}
    for site in sites.sites:
        if site.id in gone:
            continue
        mlp = sites.mlp(site.id)
        kept = narrow.get(mlp.id) if mlp is not None else None
        small = site if mlp is None or kept is None else replace(site, shape=shape_of(mlp, site.id, site.shape, kept))
        forms = [legal(entry, small) for entry in MENU if site.op in entry.ops]
        encoding = rng.choice(rng.choice([each for each in forms if each]))
        made[site.id] = encoding if mlp is None or kept is None else with_width(encoding, kept, mlp.neurons)
    return Decision(made, skipped)


def planned(case: Case, seed: int) -> Planned | None:
    """The case under the plan of a seed; None where it has no site."""
    sites = find_sites(case.capture, case.weights, MENU, MACHINE)
    if not sites.sites:
        return None
    decision = random_plan(sites, random.Random(seed))
    stored = {name: _encode(case.weights, sites, name, each, seed) for name, each in decision.encodings.items()}
    reference = rewrite(case.capture, sites, MENU, stored, decision.skipped)
    made = assemble(case.capture, case.weights, sites, decision, lambda site, encoding: stored[site])
    return Planned(decision, reference, made.program, made.weights)


def _encode(weights: Sequence[Tensor], sites: Sites, site: str, encoding: Encoding, seed: int) -> Encoded:
    """As the scorer stores it, unrepaired; which neurons stay is drawn."""
    weight = sites.weight(tuple(weights), site).detach().float().contiguous()
    entry, count, mlp = kernel(MENU, encoding.family), kept_of(encoding), sites.mlp(site)
    if count is None or mlp is None:
        return entry.encode(weight, encoding, None)
    kept = torch.tensor(sorted(random.Random(f"{seed} {mlp.id}").sample(range(mlp.neurons), count)))
    is_down = site == mlp.down
    made = entry.encode((weight[:, kept] if is_down else weight[kept]).contiguous(), dense(encoding), None)
    return Encoded(encoding, made.shape, {**made.parts, **({} if is_down else {"kept": kept})})

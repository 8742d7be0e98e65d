"""Linears over one input: a choice covers them all, with the time they take together; the program stays as it is."""

import json
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import pytest
import torch
from torch import nn

import adaflex
from adaflex import tabling
from adaflex.api import ModelPlan
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.commands.planned import plan_json
from adaflex.passes.menu import Machine
from adaflex.passes.widths import kept_of
from adaflex.pricing import Price, Spec, price
from adaflex.report import layer_rows
from adaflex.solver.allocate import allocate, best_uniform
from adaflex.solver.check import faults, totals
from adaflex.solver.pins import Pins, excluded_by
from adaflex.solver.table import Budget, Choice, CostTable, Encoding
from adaflex.verifying import decision_of
from tests.passes.test_sites_and_rewrite import Layer

CONVERSION = 5_000
GROUP = ("0.query.weight", "0.key.weight", "0.value.weight")


def priced(specs: AbstractSet[Spec], here: Machine, progress: Callable[[int, int], None]) -> dict[Spec, Price]:
    """Times that are known: a conversion for each spec whose kernel converts, a nanosecond for each stored byte."""
    found = {}
    for spec in specs:
        form = kernel(MENU, spec.encoding.family).form(spec.encoding)
        work = sum(n * spec.k * spec.encoding.bits // 8 for n in (spec.n, *spec.others))
        found[spec] = Price(work + (CONVERSION if form != "f32" else 0), 0.0)
    return found


@pytest.fixture(scope="module")
def planned() -> ModelPlan:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer()).eval().requires_grad_(False)
    calls = [torch.randn(1, 8, 64) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabling, "prices_of", priced)
        return adaflex.plan(
            model,
            calls[0],
            calibration=calls,
            loss=0.2,
            objective="latency",
            axes=["precision", "skip", "sparsity"],
            forbid=[("*", "skip*")],
            threads=1,
            on_broken="warn",
        )


def covers(table: CostTable) -> dict[tuple[tuple[str, ...], Encoding], Choice]:
    return {(c.sites, c.encoding): c for c in table.choices if len(c.sites) > 1 and c.encoding is not None}


def test_a_cover_costs_one_conversion_and_the_rest_in_sum(planned: ModelPlan) -> None:
    table = planned.table
    single = {(c.sites[0], c.encoding): c for c in table.choices if len(c.sites) == 1}
    found = covers(table)
    assert {sites for sites, _ in found} == {GROUP, tuple(name.replace("0.", "1.") for name in GROUP)}
    offered = [e for e in planned.planned.sites.offers[GROUP[0]] if e.family != "fp32" and kept_of(e) is None]
    assert {encoding for sites, encoding in found if sites == GROUP} == set(offered)
    for (sites, encoding), cover in found.items():
        parts = [single[site, encoding] for site in sites]
        alone = sum(part.cost.time_ns[0] for part in parts)
        assert alone - cover.cost.time_ns[0] == 2 * CONVERSION
        assert cover.cost.size_bytes == sum(part.cost.size_bytes for part in parts)
        assert cover.cost.loss == pytest.approx(sum(part.cost.loss for part in parts))
        assert cover.label == parts[0].label and cover.axis == "precision"


def test_the_fastest_plan_takes_covers_and_is_explained(planned: ModelPlan) -> None:
    table, plan = planned.table, planned.planned.plan
    taken = {c.id: c for c in table.choices}
    mine = [taken[plan.choice_of(site)] for site in GROUP]
    assert mine[0] is mine[1] is mine[2] and mine[0].sites == GROUP
    decision = decision_of(table, plan)
    assert {decision.encodings[site] for site in GROUP} == {mine[0].encoding}
    rows = {row[0]: row for row in layer_rows(planned.planned)}
    assert rows[GROUP[0]][1].endswith("(1 of 3)") and rows[GROUP[0]][2] and not rows[GROUP[1]][2]
    assert f"together with {GROUP[1]}, {GROUP[2]}" in planned.explain(GROUP[0])
    layers = {each["layer"]: each for each in plan_json(plan, table)["layers"]}
    assert layers[GROUP[1]]["covers"] == list(GROUP)
    json.dumps(layers)


def test_one_by_one_the_same_choices_are_the_same_program_and_slower(planned: ModelPlan) -> None:
    table, plan = planned.table, planned.planned.plan
    cover = next(c for c in table.choices if c.id == plan.choice_of(GROUP[0]))
    single = {c.sites[0]: c.id for c in table.choices if c.encoding == cover.encoding and len(c.sites) == 1}
    apart = dict(plan.choices) | {site: single[site] for site in GROUP}
    assert not faults(table, Budget(), apart)
    one, other = totals(table, plan.choices), totals(table, apart)
    assert other.time_ns[0] - one.time_ns[0] >= 2 * CONVERSION * table.time_scale[0] // table.time_scale[1] - 1
    assert (one.size_bytes, one.peak_bytes, one.bits_milli) == (other.size_bytes, other.peak_bytes, other.bits_milli)


def test_uniform_plans_and_pins_know_covers(planned: ModelPlan) -> None:
    table = planned.table
    uniform = best_uniform(table, Budget(loss=0.04, objective="latency"))
    by_id = {c.id: c for c in table.choices}
    picked = {by_id[name].sites for site, name in uniform.choices if site in GROUP}
    assert picked == {GROUP}
    pins = Pins(pin=((GROUP[1], "bf16"),))
    out = excluded_by(table, pins)
    for (sites, encoding), cover in covers(table).items():
        assert (cover.id in out) == (sites == GROUP and encoding.family != "bf16")
    best = allocate(table, Budget(loss=0.04, objective="latency"), pins=pins)
    assert by_id[best.choice_of(GROUP[1])].label == "bf16"


def test_siblings_are_priced_with_one_conversion() -> None:
    """What is timed: three products take longer than one; how much less than three times is the machine's to say."""
    encoding = Encoding("w8a8", 8, 0, True, 64, "compensated")
    one, three = Spec(encoding, 256, 256, 32), Spec(encoding, 256, 256, 32, (256, 256))
    found = price([one, three], Machine("avx2", 1))
    assert found[one].time_ns < found[three].time_ns < 4.5 * found[one].time_ns

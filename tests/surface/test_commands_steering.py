"""Pins, axes and the time limit: what they leave of the choices."""

from pathlib import Path

import pytest

import adaflex
from adaflex.allowed import narrowed, offered, pins_of
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import OptionError
from adaflex.options import parse
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Machine
from adaflex.passes.sites import Sites, find_sites
from adaflex.report import layer_rows
from adaflex.solver.pins import excluded_by
from tests.surface.tiny_model import calls, model


@pytest.fixture(scope="module")
def sites() -> Sites:
    capture, weights = from_export(model(), (), calls(1)[0])
    return find_sites(capture, weights, MENU, Machine("avx512", 1))


def left(sites: Sites, **options: object) -> dict[str, set[str]]:
    """Labels that remain per site."""
    table = offered(sites)
    excluded = excluded_by(table, pins_of(sites, parse(options)))
    found: dict[str, set[str]] = {site.id: set() for site in sites.sites}
    for choice in table.choices:
        if choice.id not in excluded:
            found[choice.sites[0]].add(choice.label)
    return found


def test_patterns_may_leave_the_suffix_out(sites: Sites) -> None:
    for pattern in ("up", "up.weight", "u*", "re:u[pq]", "re:up\\.weight"):
        assert left(sites, pin=[(pattern, "bf16")])["up.weight"] == {"bf16"}


def test_the_first_pair_that_meets_a_layer_decides(sites: Sites) -> None:
    found = left(sites, pin=[("down", "fp32"), ("*", "bf16")])
    assert found == {"up.weight": {"bf16"}, "down.weight": {"fp32"}}


def test_forbidden_choices_are_gone(sites: Sites) -> None:
    found = left(sites, forbid=[("*", "re:w4.*")])
    assert found["up.weight"] and not any(label.startswith("w4") for labels in found.values() for label in labels)


def test_a_pattern_that_meets_nothing_names_the_nearest(sites: Sites) -> None:
    with pytest.raises(OptionError, match=r"dwn.*down\.weight"):
        left(sites, forbid=[("dwn", "bf16")])


def test_without_the_precision_axis_weights_stay(sites: Sites) -> None:
    assert narrowed(sites, ("precision",)).offers == sites.offers
    kept = narrowed(sites, ("skip",))
    assert {site: list(offers) for site, offers in kept.offers.items()} == {s: [sites.keep[s]] for s in sites.offers}


def test_what_the_time_limit_cut_is_estimated_and_said(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    wish = {"objective": "memory", "loss": 0.5}  # the smallest plan: which one is fastest here differs from run to run
    made = adaflex.plan(model(), calls(4), time_limit=1e-6, on_broken="warn", threads=1, **wish)
    assert any(name == "time limit" for name, _ in made.table.notes) and "time limit" in caplog.text
    assert set(made.planned.scores.source.values()) == {
        "measured",
        "estimated",
    }  # what changes nothing needs no estimate
    for choice in made.table.choices:
        assert choice.encoding is not None and choice.cost.source == "measured"
        assert choice.cost.loss_source == made.planned.scores.source[choice.sites[0], choice.encoding]
    taken = {choice.id: choice for choice in made.table.choices}
    guessed = [name for name in dict(made.planned.plan.choices).values() if taken[name].cost.loss_source == "estimated"]
    assert guessed and f"estimated, not measured, as are the losses of {len(guessed)}" in made.report()
    assert sum(row[3].startswith("~") for row in layer_rows(made.planned)) == len(guessed)
    assert "(time measured, loss estimated)" in made.explain("up.weight")

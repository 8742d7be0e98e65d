"""Weights on disk: the same outputs bit for bit, less memory, the stall as stated; damaged files."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adaflex
from adaflex import assembly, placing
from adaflex.api import _captured
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import ArtifactError, BudgetError, CaptureError, OptionError
from adaflex.options import parse
from adaflex.passes.calibration import calibration
from adaflex.passes.decision import Decision
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.sites import Sites
from adaflex.planning import _corrected, here_for, sites_of
from adaflex.runtime import artifact_file
from adaflex.runtime.execute import Executor
from adaflex.runtime.stream import PAGE
from adaflex.runtime.verdict import Verdict, stall_promise
from adaflex.solver.allocate import allocate
from adaflex.solver.check import stall_ns
from adaflex.solver.table import Budget, Encoding
from adaflex.tabling import model_of
from adaflex.verifying import Attempt
from tests.runtime import sample

WIDE, DEEP, WORDS = 64, 4, 50


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDE), nn.Linear(WIDE, 4 * WIDE), nn.Linear(4 * WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Deep(nn.Module):
    """Words in, one number per class out; ``tied`` is used by two layers, and sorted values by a library op."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDE)
        self.layers = nn.ModuleList(Layer() for _ in range(DEEP))
        self.tied = nn.Linear(WIDE, WIDE)
        self.head = nn.Linear(WIDE, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tied(self.words(ids))
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 1:
                x = x.sort(dim=-1).values
        return self.head(self.tied(x))


def model() -> nn.Module:
    torch.manual_seed(0)
    return Deep().eval().requires_grad_(False)


def calls(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, WORDS, (12,), generator=generator) for _ in range(count)]


@dataclass(frozen=True, eq=False)
class Made:
    """The model captured, and how its weights are stored without calibration."""

    capture: object
    weights: object
    sites: Sites
    here: Machine

    def provide(self, site: str, encoding: Encoding) -> Encoded:
        weight = self.sites.weight(self.weights, site).detach().float()  # type: ignore[arg-type]
        return kernel(MENU, encoding.family).encode(weight, encoding, None)

    def assembled(self, tiers: dict[str, str], family: str = "", skipped: tuple[str, ...] = ()) -> assembly.Assembled:
        found = {s: [e for e in offers if e.family == family] for s, offers in self.sites.offers.items()}
        encodings = {site: offers[0] for site, offers in found.items() if offers}
        decision = Decision(encodings, skipped, tiers)
        return assembly.assemble(self.capture, self.weights, self.sites, decision, self.provide)  # type: ignore[arg-type]

    def run(self, tiers: dict[str, str], family: str = "", calls: int = 1) -> Executor:
        return assembly.executor(self.assembled(tiers, family), self.here, calls)

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        return assembly.blocks_of(self.capture, self.sites)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made() -> Made:
    options = parse({"threads": 2, "axes": ("precision", "skip")})
    data = calibration(calls())
    capture, weights = _captured(model(), data.batches[0], data.batches[0], options)
    here = here_for(options)
    sites = sites_of(model_of(capture, weights, data, options), options, here)
    return Made(capture, weights, sites, here)


def on_disk(blocks: tuple[tuple[str, ...], ...], which: int) -> dict[str, str]:
    """The sites whose bit in ``which`` is set."""
    sites = [site for block in blocks for site in block]
    return {site: "disk" for place, site in enumerate(sites) if which >> place & 1}


def test_blocks_are_layers_in_order_and_leave_out_what_is_looked_up_or_shared(made: Made) -> None:
    layers = [(f"layers.{k}.up.weight", f"layers.{k}.down.weight") for k in range(DEEP)]
    assert made.blocks == (*layers, ("head.weight",))


@pytest.mark.parametrize(
    ("family", "which"), [("", 511), ("", 0b100000001), ("", 0b000110000), ("w8a8", 511), ("w8a8", 0b101010101)]
)
def test_outputs_are_equal_bit_for_bit_wherever_the_weights_are(made: Made, family: str, which: int) -> None:
    tiers = on_disk(made.blocks, which)
    resident, streamed = made.run({}, family), made.run(tiers, family)
    for ids in calls() * 2:
        assert torch.equal(resident(ids)[0], streamed(ids)[0])
    program, memory, other = streamed.program, streamed.memory((calls()[0],)), resident.memory((calls()[0],))
    moved = sum(c.size_bytes for c in program.constants if c.tier == "disk")
    assert {c.name for c in program.constants if c.tier == "disk"} == set(tiers)
    assert moved - 64 * len(tiers) <= other["weights"] - memory["weights"] <= moved + 64 * len(tiers)
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert 0 < memory["ring"] <= moved + PAGE * len(program.blocks) and streamed.staging is not None


def test_a_skipped_block_keeps_its_empty_place_in_the_order_of_reading(made: Made) -> None:
    (block,) = (block for block in made.sites.blocks if "layers.1.up.weight" in block.sites)
    tiers = {site: tier for site, tier in on_disk(made.blocks, 511).items() if site not in block.sites}
    resident = assembly.executor(made.assembled({}, skipped=(block.id,)), made.here)
    streamed = assembly.executor(made.assembled(tiers, skipped=(block.id,)), made.here)
    assert [each.size_bytes > 0 for each in streamed.program.blocks] == [True, False, True, True, True]
    for ids in calls():
        assert torch.equal(resident(ids)[0], streamed(ids)[0])


def test_calls_at_the_same_time_have_a_ring_each(made: Made) -> None:
    streamed, resident = made.run(on_disk(made.blocks, 511), calls=2), made.run({})
    wanted = [resident(ids)[0] for ids in calls()]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = list(pool.map(lambda ids: streamed(ids)[0], calls()))
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_memory_counts_the_arena_and_the_ring_of_every_call_at_once(made: Made) -> None:
    tiers = on_disk(made.blocks, 511)
    one, three = (made.run(tiers, calls=count).memory((calls()[0],)) for count in (1, 3))
    assert three["weights"] == one["weights"] and all(three[name] == 3 * one[name] for name in ("arena", "ring"))
    assert three["total"] == sum(value for name, value in three.items() if name != "total") > one["total"]


def test_a_call_that_fails_halfway_does_not_spoil_the_next(made: Made) -> None:
    streamed, resident = made.run(on_disk(made.blocks, 511)), made.run({})
    for ids in calls():
        with pytest.raises(OptionError, match="embedding"):
            streamed(torch.full((12,), WORDS))
        assert torch.equal(streamed(ids)[0], resident(ids)[0])


def test_a_shared_weight_is_refused_the_disk_by_the_table_and_by_assembly(made: Made) -> None:
    assert "tied.weight" not in {site for block in made.blocks for site in block}
    for name in ("tied.weight", "words.weight"):
        with pytest.raises(CaptureError, match=f"'{name}' is looked up by row or used more than once"):
            made.assembled({name: "disk"})


def test_the_cache_may_be_cleared_while_a_program_runs(made: Made, own_cache: Path) -> None:
    streamed, resident = made.run(on_disk(made.blocks, 511)), made.run({})
    streamed(calls()[0])
    (path,) = (own_cache / "streams").glob("*.bin")
    path.unlink()
    assert torch.equal(streamed(calls()[1])[0], resident(calls()[1])[0])


# ---- planned ----
def plan(**options: object) -> adaflex.api.ModelPlan:  # type: ignore[name-defined]
    given = {"axes": ("precision", "placement"), "threads": 1, "loss": 0.5, **options}
    return adaflex.plan(model(), calls(), calibration=calls(), **given)


@pytest.fixture(scope="module")
def planned() -> adaflex.api.ModelPlan:  # type: ignore[name-defined]
    return plan(memory="130KiB")


def test_a_budget_that_no_resident_plan_meets_is_met_from_disk(planned: adaflex.api.ModelPlan) -> None:  # type: ignore[name-defined]
    with pytest.raises(BudgetError):
        plan(memory="130KiB", axes="precision")
    promises = {promise.name: promise for promise in planned.planned.verdict.promises}
    assert planned.planned.verdict.held and promises["memory"].measured <= 130 * 1024
    tiers = {choice.id: choice.tier for choice in planned.table.choices}
    taken = {site: tiers[name] for site, name in planned.planned.plan.choices}
    assert "disk" in taken.values() and taken["words.weight"] == taken["tied.weight"] == "memory"
    assert "stall: allowed" in planned.report() and "@disk" in planned.report()
    assert "read from disk at every call" in planned.report()
    stall = promises["stall"]
    assert stall.asked == 1.25 * stall.planned + 1e6 and 0 <= stall.measured <= stall.asked
    made = planned.planned.executor
    own = made.memory((calls()[0],))
    assert own["total"] <= planned.planned.plan.totals.peak_bytes and own["ring"] > 0


def test_a_budget_counts_every_call_at_once(planned: adaflex.api.ModelPlan) -> None:  # type: ignore[name-defined]
    """Two rings and two arenas do not fit where one of each does; with room for them, what was planned is measured."""
    one = planned.planned.executor.memory((calls()[0],))
    with pytest.raises(BudgetError):
        plan(memory="130KiB", max_concurrency=2)
    made = plan(memory="225KiB", max_concurrency=2).planned
    own = made.executor.memory((calls()[0],))
    (memory,) = (promise for promise in made.verdict.promises if promise.name == "memory")
    assert own["arena"] > 1.5 * one["arena"]
    assert own["total"] <= memory.measured <= memory.planned <= 225 * 1024
    assert made.plan.totals is not None and own["ring"] <= made.plan.totals.ring_bytes
    assert made.table.cuts[0].base_bytes >= 2 * planned.table.cuts[0].base_bytes - 4096


def test_nothing_is_streamed_where_memory_is_no_matter(planned: adaflex.api.ModelPlan) -> None:  # type: ignore[name-defined]
    free = allocate(planned.table, Budget(loss=0.25))
    assert free.choices and not any(name.endswith("@disk") for _, name in free.choices)
    assert stall_ns(planned.table, free.choices) == (0,)


@pytest.mark.parametrize("beyond", [100_000, 80_000_000])
def test_a_stall_that_did_not_hold_makes_the_table_s_disk_slower(
    planned: adaflex.api.ModelPlan,  # type: ignore[name-defined]
    beyond: int,
) -> None:
    made = planned.planned
    stated = stall_ns(made.table, made.plan.choices)[0]
    measured = int(stall_promise(stated, 0).asked or 0) + beyond
    others = [promise for promise in made.verdict.promises if promise.name != "stall"]
    broken = Verdict((*others, stall_promise(stated, measured)))
    assert not broken.held
    attempt = Attempt(made.table, made.plan, made.assembled, made.executor, broken)
    table = _corrected(made.plan.budget, attempt)
    assert table is not None
    again = stall_ns(table, made.plan.choices)[0]
    assert measured <= again <= 1.2 * measured + 10_000
    assert stall_promise(again, measured).held


def test_saved_loaded_and_verified(
    planned: adaflex.api.ModelPlan,  # type: ignore[name-defined]
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from adaflex.cli import main

    program = planned.compile()
    first, second = tmp_path / "a.afx", tmp_path / "b.afx"
    digest = program.save(first)
    again = adaflex.load(first, threads=1)
    for ids in calls():
        assert torch.equal(program(ids), again(ids))
    assert again.memory(calls()[0]) == program.memory(calls()[0])
    assert again.save(second) == digest and first.read_bytes() == second.read_bytes()
    first.unlink()
    assert torch.equal(program(calls()[0]), again(calls()[0]))
    main(["verify", str(second), "--threads", "1", "--json"])
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    stall = next(promise for promise in verdict["promises"] if promise["name"] == "stall")
    assert stall["measured"] is not None and stall["held"]


def test_damaged_and_hostile_streamed_weights_are_refused(
    planned: adaflex.api.ModelPlan,  # type: ignore[name-defined]
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.afx"
    planned.compile().save(path)
    raw = path.read_bytes()
    header = sample.header(raw)
    start = artifact_file.PREAMBLE.size + artifact_file.PREAMBLE.unpack(raw[:64])[3] + header["streamed"]["offset"]
    for place, message in ((start + 3, "SHA-256"), (start + header["streamed"]["size_bytes"] - 1, "zero|SHA-256")):
        bad = bytearray(raw)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(ArtifactError, match=message):
            adaflex.load(path)
    path.write_bytes(raw[:-PAGE])
    with pytest.raises(ArtifactError, match="cut short"):
        adaflex.load(path)
    number = next(k for k, c in enumerate(header["program"]["constants"]) if c.get("tier") == "disk")
    for key, value in (("first", 1000), ("last", 1000), ("offset", 1), ("size_bytes", 1 << 40), ("first", 0)):
        hostile = json.loads(json.dumps(header))
        block = next(b for b in reversed(hostile["program"]["blocks"]) if b.get("size_bytes"))
        block[key] = value
        _refused(path, raw, hostile)
    hostile = json.loads(json.dumps(header))
    del hostile["program"]["constants"][number]["tier"]
    _refused(path, raw, hostile)
    hostile = json.loads(json.dumps(header))
    del hostile["program"]["blocks"]
    _refused(path, raw, hostile)


def _refused(path: Path, raw: bytes, header: object) -> None:
    path.write_bytes(sample.signed(raw, json.dumps(header).encode(), version=artifact_file.STREAMING))
    with pytest.raises(ArtifactError):
        adaflex.load(path)


def test_a_saved_plan_streams_again(tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    first = plan(memory="130KiB", save_plan=path)
    again = plan(plan=path)
    assert again.planned.plan.choices == first.planned.plan.choices
    ids = calls()[0]
    assert torch.equal(first.compile()(ids), again.compile()(ids))


def test_through_torch_compile() -> None:
    pin = (("*layers*", "disk"),)
    options = {"pin": pin, "loss": 0.5, "axes": ("precision", "placement"), "calibration": calls()}
    made = torch.compile(model(), backend="adaflex", options=options, fullgraph=True)
    with torch.no_grad():
        out = made(calls()[0])
    (program,) = adaflex.programs(made)
    assert out.shape == (12, 8) and any("@disk" in name for _, name in program.plan.choices)


# ---- the disk ----
def test_times_of_reads_grow_with_their_bytes() -> None:
    tier = placing.Tier("disk", bandwidth=((4096, 4096 * 10**4), (65536, 65536 * 5 * 10**3)))
    assert placing.stream_ns(tier, 1) == placing.stream_ns(tier, 4096) == 100_000
    assert placing.stream_ns(tier, 65536) == 200_000 and placing.stream_ns(tier, 34816) == 150_000
    assert placing.stream_ns(tier, 3 * 65536 + 1) == 700_000


def test_the_disk_is_measured_once_and_again_where_the_figures_are_damaged(own_cache: Path) -> None:
    first = placing.disk()
    assert [request for request, _ in first.bandwidth] == list(placing.REQUESTS) and first.latency_ns > 0
    assert placing.disk() == first
    (path,) = (own_cache / "streams").glob("speed-*.json")
    for text in ("", "[]", '{"bandwidth": [[4096, 0]], "latency_ns": 1}'):
        path.write_text(text)
        assert [request for request, _ in placing.disk().bandwidth] == list(placing.REQUESTS)
    assert not list((own_cache / "streams").glob("probe-*"))

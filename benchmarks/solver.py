"""The joint program against every other allocator on the same tables, and the packer on its own problems.

Run: python benchmarks/solver.py [allocate|device|stream|pack|rules|sums|yardstick|all] [--blocks 12] [--seeds 3].
Prints tables in Markdown: loss over the proven bound, seconds, and "infeasible" where a method finds nothing within the
budgets.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from adaflex.solver.allocate import allocate
from adaflex.solver.check import faults, totals
from adaflex.solver.generate import Shape, budgets_of, realistic
from adaflex.solver.others.orders import layer_knapsack, single_axis, two_level, two_step, unified_layer_skip
from adaflex.solver.others.single_budget import adaquant_ip, baq, greedy, lgreco_dp, rd_prune_dp, uniform
from adaflex.solver.pack.core import ALL_RULES, RULES
from adaflex.solver.pack.generate import guillotine, lives, pinwheel
from adaflex.solver.pack.search import pack
from adaflex.solver.pairwise.contest import answer
from adaflex.solver.pairwise.problem import pair_problem
from adaflex.solver.table import Budget, Buffer, CostTable
from adaflex.solver.table_json import parse, read_bytes

METHODS: dict[str, Callable[[CostTable, Budget], dict[str, str] | None]] = {
    "greedy, LP prices": greedy,
    "DP over bytes (rd-prune)": rd_prune_dp,
    "DP over loss (L-GreCo)": lgreco_dp,
    "closed form (BAQ)": baq,
    "integer program, one budget (AdaQuant)": adaquant_ip,
    "best uniform": uniform,
    "ordered two-level (LIM)": two_level,
    "even layer skipping": unified_layer_skip,
    "layer knapsack (LAPTOP-Diff)": layer_knapsack,
    "precision only": single_axis("precision"),
    "sparsity only": single_axis("sparsity"),
    "two steps, swept hand-over": two_step,
}
MEMORY = 0.35  # of the 16-bit plan
WISHES: dict[str, tuple[float | None, float | None]] = {  # of what the plan under the memory budget alone takes
    "memory": (None, None),
    "memory, decode": (None, 0.96),
    "memory, prefill, decode": (0.9, 0.96),
}


def one(table: CostTable, budget: Budget, bound: float, name: str) -> tuple[str, float]:
    """(loss over the bound or "infeasible", CPU seconds) of one method."""
    begin = time.process_time()
    chosen = METHODS[name](table, budget)
    seconds = time.process_time() - begin
    if chosen is None or faults(table, budget, chosen):
        return "infeasible", seconds
    return f"{totals(table, chosen).loss / bound - 1:+.2%}", seconds


def binding(table: CostTable, shares: tuple[float | None, float | None]) -> Budget:
    """A memory budget, and latencies below what the best plan within it takes: each of them binds."""
    budget = budgets_of(table, MEMORY)
    made = allocate(table, budget, gap=1e-3).totals
    if made is None or shares == (None, None):
        return budget
    times = zip(shares, made.time_ns, strict=True)
    return replace(budget, latency_ns=tuple(None if share is None else int(share * time) for share, time in times))


def allocators(blocks: int, seeds: int) -> None:
    """One table per number of binding budgets."""
    for wish, shares in WISHES.items():
        print(f"\n### {wish} binding, {blocks} blocks\n\n| method | " + " | ".join(f"seed {s}" for s in range(seeds)))
        print("|---" * (seeds + 1) + "|")
        rows: dict[str, list[str]] = {"joint": [], **{name: [] for name in METHODS}}
        for seed in range(seeds):
            table = realistic(Shape(blocks=blocks), seed)
            budget = binding(table, shares)
            begin = time.process_time()
            plan = allocate(table, budget, gap=1e-3)
            spent = time.process_time() - begin
            rows["joint"].append(f"{plan.gap:+.2%} ({spent:.1f} s)" if plan.gap is not None else plan.status)
            for name in METHODS:
                loss, seconds = one(table, budget, plan.bound or float("nan"), name)
                rows[name].append(f"{loss} ({seconds:.1f} s)")
        for name, cells in rows.items():
            print(f"| {name} | " + " | ".join(cells) + " |")


def joint(blocks: int, seeds: int, seconds: float, *, tiers: bool) -> None:
    """Gap to the bound after ``seconds``, or sooner where 0.1 % are reached; the most memory the process took.

    With three tiers: link 8:1, 20 % of the memory, 60 % of the decode time. Else three budgets, all of them binding.
    """
    print(f"\n### {'streaming' if tiers else 'on the device'}, {blocks} blocks, {seconds:g} s\n")
    print("| seed | loss | bound | gap | seconds | CPU s |\n|---|---|---|---|---|---|")
    for seed in range(seeds):
        table = realistic(Shape(blocks=blocks, tiers=tiers), seed)
        budget = budgets_of(table, 0.2, 0.6) if tiers else binding(table, WISHES["memory, prefill, decode"])
        begin, spent = time.perf_counter(), time.process_time()
        plan = allocate(table, budget, gap=0.0 if tiers else 1e-3, time_limit_s=seconds)
        gap = "none" if plan.gap is None else f"{plan.gap:.2%}"
        took = f"{time.perf_counter() - begin:.1f} | {time.process_time() - spent:.1f}"
        print(f"| {seed} | {plan.value} | {plan.bound} | {gap} | {took} |", flush=True)
    print(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB at most")


def packers(seeds: int, seconds: float) -> None:
    """Known optima, and large random problems against their bound."""
    print("\n### packing: height over the bound\n\n| problem | " + " | ".join(f"seed {s}" for s in range(seeds)))
    print("|---" * (seeds + 1) + "|")
    makers: dict[str, Callable[[int], list[Buffer]]] = {}
    for count in (100, 300, 400):
        makers[f"guillotine {count}"] = lambda seed, n=count: guillotine(n, seed)  # type: ignore[misc]
        makers[f"pinwheel {count}"] = lambda seed, n=count: pinwheel(n, seed)  # type: ignore[misc]
    for live in (10, 100, 1000):
        makers[f"10,000 buffers, {live} live"] = lambda seed, n=live: lives(10_000, n, seed)  # type: ignore[misc]
        makers[f"10,000 buffers, {live} live, sizes log-uniform"] = (  # type: ignore[misc]
            lambda seed, n=live: lives(10_000, n, seed, sizes="log")
        )
    for name, make in makers.items():
        cells = []
        for seed in range(seeds):
            begin = time.process_time()
            made = pack(make(seed), time_limit_s=seconds)
            cells.append(f"{made.height / made.bound - 1:.2%} ({time.process_time() - begin:.1f} s)")
        print(f"| {name} | " + " | ".join(cells) + " |")


def yardstick(folder: Path | None, names: str, seconds: float) -> None:
    """Instances of the ASPLOS 2025 contest on intra-operator parallelism, from the folder they lie in."""
    if folder is None:
        raise SystemExit("yardstick needs --folder, with files like asplos-2025-iopddl-B.json.gz")
    print("| instance | status | cost | bound | gap | s |\n|---|---|---|---|---|---|")
    for name in names:
        path = folder / f"asplos-2025-iopddl-{name}.json.gz"
        problem = pair_problem(parse(read_bytes(path)), str(path))
        made = answer(problem, time_limit_s=seconds)
        gap = "none" if made.gap is None else f"{made.gap:.2%}"
        print(f"| {name} | {made.status} | {made.cost} | {made.bound} | {gap} | {made.seconds:.1f} |", flush=True)


def switches(seeds: int, nodes: int) -> None:
    """Tight packings with each rule of the search off: how many are found, nodes and CPU seconds for all."""
    problems = [make(400, k) for k in range(4) for make in (guillotine, pinwheel)]
    print(
        f"\n### rules of the search, {nodes} nodes each\n\n| off | found | million nodes | CPU s |\n|---|---|---|---|"
    )
    for name in ("nothing", *RULES):
        found, used, begin = 0, 0, time.process_time()
        for buffers in problems:
            for seed in range(seeds):
                off = RULES.get(name, 0)
                made = pack(
                    buffers, time_limit_s=1e6, node_limit=nodes, seed=seed, rules=ALL_RULES - off, capacity=1 << 20
                )
                found += made.status == "fits"
                used += min(nodes, made.nodes)
        spent = time.process_time() - begin
        print(f"| {name} | {found} of {len(problems) * seeds} | {used / 1e6:.1f} | {spent:.1f} |", flush=True)


def near_a_packing(count: int, seed: int) -> list[Buffer]:
    """Buffers of three sizes, an eighth of them pinned near where a packing has them."""
    rng = random.Random(f"pinned {count} {seed}")
    sizes = rng.sample(range(5, 20), 3)
    spans = [(first := rng.randint(0, count // 2), first + rng.randint(1, 8)) for _ in range(count)]
    buffers = [Buffer(f"b{i}", 64 * rng.choice(sizes), *span) for i, span in enumerate(spans)]
    known = dict(pack(buffers, time_limit_s=1e6, node_limit=1000).offsets)
    near = [known[b.id] + 64 * rng.choice([0, 0, 1, 2]) if rng.random() < 0.12 else None for b in buffers]
    return [replace(b, offset=at) for b, at in zip(buffers, near, strict=True)]


def aligned(count: int, seed: int, steps: Sequence[int], most: int) -> list[Buffer]:
    """Buffers of up to ``most`` bytes, each at multiples of one of ``steps``."""
    rng = random.Random(f"aligned {count} {seed}")
    found = []
    for i in range(count):
        first = rng.randint(0, count // 2)
        found.append(Buffer(f"b{i}", rng.randint(1, most), first, first + rng.randint(1, 6), rng.choice(steps)))
    return found


def sums_of_sizes(seeds: int, nodes: int) -> None:
    """What the bound by sums of sizes is worth: least heights of small problems with and without it."""
    kinds: dict[str, Callable[[int], list[Buffer]]] = {
        "12 coarse, pins": lambda seed: near_a_packing(12, seed),
        "30 coarse, pins": lambda seed: near_a_packing(30, seed),
        "60 coarse, pins": lambda seed: near_a_packing(60, seed),
        "12 at 16 or 64": lambda seed: aligned(12, seed, (16, 64), 500),
        "20 at 1, 16 or 64": lambda seed: aligned(20, seed, (1, 16, 64), 100),
        "40 at 64 or 256": lambda seed: aligned(40, seed, (64, 256), 3000),
    }
    print(f"\n### sums of sizes, {nodes} nodes each\n\n| problem | proven | million nodes | CPU s | over the bound |")
    print("|---" * 5 + "|")
    for name, make in kinds.items():
        cells = []
        for rules in (ALL_RULES, ALL_RULES - RULES["sums"]):
            begin = time.process_time()
            made = [pack(make(seed), time_limit_s=1e6, node_limit=nodes, rules=rules) for seed in range(seeds)]
            spent = time.process_time() - begin
            made = [m for m in made if m.status != "infeasible"]  # pins that clash
            over = sum(m.height / m.bound - 1 for m in made) / len(made)
            proven = f"{sum(m.status == 'optimal' for m in made)} of {len(made)}"
            cells.append((proven, f"{sum(m.nodes for m in made) / 1e6:.2f}", f"{spent:.1f}", f"{over:.2%}"))
        print(f"| {name} | " + " | ".join(f"{a} ({b})" for a, b in zip(*cells, strict=True)) + " |", flush=True)


def main() -> None:
    """Run what was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["allocate", "device", "stream", "pack", "rules", "sums", "yardstick", "all"],
        default="all",
    )
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="per packing problem or table")
    parser.add_argument("--folder", type=Path, help="of the contest's instances, for yardstick")
    parser.add_argument("--names", default="BGVKP", help="letters of the instances")
    parser.add_argument("--nodes", type=int, default=1_000_000, help="per search of the rules' table")
    args = parser.parse_args()
    if args.what in ("device", "stream"):
        joint(args.blocks, args.seeds, args.seconds, tiers=args.what == "stream")
    if args.what == "yardstick":
        yardstick(args.folder, args.names, args.seconds)
    if args.what in ("allocate", "all"):
        allocators(args.blocks, args.seeds)
    if args.what == "rules":
        switches(args.seeds, args.nodes)
    if args.what == "sums":
        sums_of_sizes(args.seeds, args.nodes)
    if args.what in ("pack", "all"):
        packers(args.seeds, args.seconds)


if __name__ == "__main__":
    main()

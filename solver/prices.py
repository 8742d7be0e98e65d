"""The budgets of a program as prices: what each column costs then, and which prices bound best.

In: a ``Program``, the duals of its LP, the ``Chain`` of its blocks. Out: lower bounds of all plans whose ring lies in
an interval. The LP's duals give the prices a start and their ratio within a budget's rows; one factor for each budget
is then sought by the ellipsoid method, which needs a value and a slope and no step size.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adaflex.solver.chain import Chain, Floats, chain_of
from adaflex.solver.model import INFINITE, Program
from adaflex.solver.solve import Duals
from adaflex.solver.table import CostTable

SAFE = 1e-9  # relative, for rounding in floating point
ROUNDS = 24  # of the ellipsoid method for one interval
RADIUS = 0.15  # within which the best factors are sought
ENOUGH = 3e-4  # relative gain of a bound not worth another round
EDGES = (0.0, 0.6, 0.85, 1.0, 1.15, 1.5, 2.5)  # of the LP's ring: the first intervals
KEPT = ("cover ", "ring ", "cast ")  # rows the chain keeps or that may be left out


@dataclass(frozen=True)
class Priced:
    """Costs of all columns are ``base`` + factors x ``parts``; likewise the constants. One factor per budget."""

    base: Floats
    parts: Floats  # budgets x columns
    constant: float
    constants: Floats
    ring: int
    stall: int  # a stall column of the phase whose waits the chain keeps
    others: Floats  # 1 for continuous columns that are at least 0 and cost what they cost, else 0

    def columns(self, factors: Floats) -> Floats:
        """The price of each column."""
        return self.base + factors @ self.parts

    def sound(self, columns: Floats) -> bool:
        """Whether no continuous column would pay for being large."""
        size = np.abs(self.base) + np.abs(self.parts).sum(axis=0)
        return bool(np.all((columns >= -SAFE * size) | (self.others == 0.0)))


def priced_of(table: CostTable, program: Program, objective: str, duals: Duals, phase: int) -> Priced | None:
    """Prices from LP duals; None where no budget binds or nothing streams in ``phase``."""
    stall = f"stall {table.phases[phase]} "
    first = table.tiers[0].name
    merged = dict.fromkeys((f"tier {first}", f"capacity of {first}"), "memory")
    groups = [_budget_of(row.name, row.budget, merged) for row in program.rows]
    bound = {g for g, row, y in zip(groups, program.rows, duals.rows, strict=True) if row.budget and y}
    names = sorted(bound)
    base, constant = program.objectives[objective][0].copy(), program.objectives[objective][1]
    parts, constants = np.zeros((len(names), len(base))), np.zeros(len(names))
    column = -1
    for row, group, y in zip(program.rows, groups, duals.rows, strict=True):
        if row.name.startswith(stall):
            column = int(row.columns[-1])
        elif y and not row.name.startswith(KEPT):
            limit = row.high if y < 0 or not np.isfinite(row.low) else row.low
            if group in bound:
                number = names.index(group)
                parts[number, row.columns] -= y * row.values
                constants[number] += y * limit
            else:
                base[row.columns] -= y * row.values
                constant += y * limit
    if column < 0 or not names or program.ring < 0:
        return None
    others = np.ones(len(base))
    others[: program.choices] = 0.0
    return Priced(base, parts, constant, constants, program.ring, column, others)


def _budget_of(name: str, budget: str, merged: dict[str, str]) -> str:
    """The budget a row's dual belongs to; "" for structure."""
    if budget:
        return merged.get(budget, budget)
    if name == "resident" or name.startswith("cut"):
        return "memory"
    if name.startswith("stall "):
        return "latency of " + name.removeprefix("stall ").rpartition(" ")[0]
    return "loss" if name.startswith("pair ") else ""


@dataclass(order=True)
class Interval:
    """Ring sizes from ``low`` to ``high`` units with the best bound known and the factors that gave it."""

    bound: float
    low: int
    high: int
    factors: Floats = field(compare=False)
    tried: int = field(compare=False, default=0)


@dataclass(frozen=True)
class Point:
    """A bound at some factors and its slope in each."""

    value: float
    slope: Floats


class Bounds:
    """Bounds by ring size, improved where they are lowest."""

    def __init__(self, chain: Chain, priced: Priced, edges: Sequence[int]) -> None:
        self.chain, self.priced = chain, priced
        self.settled = INFINITE
        factors = np.ones(len(priced.constants))
        self.open = [
            Interval(self.bound(factors, low, high - 1), low, high - 1, factors)
            for low, high in itertools.pairwise(edges)
        ]
        heapq.heapify(self.open)

    @property
    def least(self) -> float:
        """No plan whose ring lies in the intervals is worth less."""
        return min([self.settled, *(interval.bound for interval in self.open)])

    @property
    def reach(self) -> float:
        """Bytes of ring from which on nothing is said."""
        return (1 + max(interval.high for interval in self.open)) * float(self.chain.unit) if self.open else INFINITE

    def bound(self, factors: Floats, low: int, high: int) -> float:
        """The bound of an interval at some factors."""
        point = self.point(factors, low, high)
        return -INFINITE if point is None else point.value

    def at(self, factors: Floats) -> tuple[Floats, Floats, float]:
        """(price of each column, prices of the choices by share, price of link time)."""
        columns = self.priced.columns(factors)
        wait = float(columns[self.priced.stall])
        return columns, self.chain.prices(columns[: len(self.chain.compute)], wait), wait

    def point(self, factors: Floats, low: int, high: int) -> Point | None:
        """The bound for rings of ``low`` to ``high`` units: each may hold ``high``, none pays for more than ``low``.

        None where the factors are no valid prices.
        """
        columns, prices, wait = self.at(factors)
        if factors.min() < 0.0 or not self.priced.sound(columns):
            return None
        made = self.chain.run(self.chain.tables(prices, high), wait, high)
        if not np.isfinite(made.value):  # nothing fits in so small a ring
            return Point(INFINITE, np.zeros(len(factors)))
        ring = float(low * self.chain.unit)
        rest = self.chain.rest(columns)
        terms = (self.priced.constant, *(factors * self.priced.constants), made.value, rest)
        value = sum(terms) + ring * float(columns[self.priced.ring])
        taken = self.chain.taken(made, prices, columns)
        slope = self.priced.constants + self.priced.parts[:, taken].sum(axis=1)
        slope = slope + self.priced.parts[:, self.priced.ring] * ring
        if wait > 0.0:  # the chain's value beyond its columns is time of the link
            slope = slope + self.priced.parts[:, self.priced.stall] * (
                (made.value + rest - float(columns[taken].sum())) / wait
            )
        return Point(value - SAFE * sum(abs(term) for term in terms), slope)

    def plan(self, factors: Floats, size: int) -> list[int]:
        """The columns that are cheapest at some factors among those whose staging fits a ring of ``size`` units."""
        columns, prices, wait = self.at(factors)
        made = self.chain.run(self.chain.tables(prices, size), wait, size, strict=True)
        return self.chain.taken(made, prices, columns)

    def ascend(self, interval: Interval, target: float, deadline: float) -> None:
        """Raise an interval's bound by the ellipsoid method until ``target``, or until little more is possible."""
        count = max(2, len(interval.factors))
        shape = np.eye(count) * RADIUS**2
        centre = np.concatenate([interval.factors, np.zeros(count - len(interval.factors))])
        interval.tried += 1
        for _ in range(ROUNDS):
            factors = centre[: len(interval.factors)]
            point = self.point(factors, interval.low, interval.high)
            slope = np.zeros(count)
            if point is not None:
                slope[: len(factors)] = point.slope
                if point.value > interval.bound:
                    interval.bound, interval.factors = point.value, factors.copy()
            elif factors.min() < 0.0:
                slope[int(np.argmin(factors))] = 1.0
            reach = float(np.sqrt(slope @ shape @ slope))  # no more can be gained within the ellipsoid
            enough = reach <= ENOUGH * abs(interval.bound)
            if enough or interval.bound >= target or time.perf_counter() > deadline:
                break
            step = shape @ slope / reach
            centre = centre + step / (count + 1)
            shape = count**2 / (count**2 - 1.0) * (shape - 2.0 / (count + 1) * np.outer(step, step))

    def improve(self, target: float, deadline: float) -> None:
        """Raise the least bound to ``target``, interval by interval, until ``deadline``."""
        while self.open and self.least < target and self.open[0].bound < self.settled:
            if time.perf_counter() > deadline:
                break
            interval = heapq.heappop(self.open)
            if interval.tried == 0:
                self.ascend(interval, target, deadline)
                heapq.heappush(self.open, interval)
            elif interval.low < interval.high:
                middle = (interval.low + interval.high) // 2
                for low, high in ((interval.low, middle), (middle + 1, interval.high)):
                    heapq.heappush(self.open, replace(interval, low=low, high=high, tried=0))
            else:
                self.settled = min(self.settled, interval.bound)


def bounds_of(table: CostTable, program: Program, objective: str, duals: Duals) -> Bounds | None:
    """Bounds from an LP's duals, for the phase in which waiting costs most; None where no chain exists."""
    ring = float(duals.values[program.ring]) if program.ring >= 0 else 0.0
    found = []
    for phase in range(len(table.phases)):
        priced = priced_of(table, program, objective, duals, phase)
        if priced is not None and ring > 0.0:
            found.append((float(priced.columns(np.ones(len(priced.constants)))[priced.stall]), phase, priced))
    if not found:
        return None
    _, phase, priced = max(found, key=lambda entry: entry[0])
    chain = chain_of(table, program, phase, EDGES[-1] * ring)
    if chain is None or not chain.blocks:
        return None
    edges = sorted({int(factor * ring / chain.unit) for factor in EDGES})
    return Bounds(chain, priced, edges)

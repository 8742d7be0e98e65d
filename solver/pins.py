"""Choices pinned or forbidden by name: patterns over site and choice, first match wins.

In: a ``CostTable`` and ``Pins``. Out: the ids of choices that may not be taken, or an ``OptionError`` naming the
nearest site where a pattern matches nothing.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from dataclasses import dataclass

from adaflex.errors import OptionError
from adaflex.solver.table import Choice, CostTable
from adaflex.solver.uniform import kind_of

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pins:
    """(site pattern, choice pattern) pairs: shell patterns, or regular expressions after ``re:``.

    A choice pattern meets a choice's id, its label, its encoding's label or family, or its tier. A pinned site may
    only take choices that meet the pattern; the first pair whose site pattern matches decides.
    """

    pin: Pairs = ()
    forbid: Pairs = ()


def matches(pattern: str, name: str) -> bool:
    """Whether a shell pattern, or a regular expression after ``re:``, meets the whole name."""
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as fault:
            raise OptionError(f"pattern {pattern!r} is no regular expression: {fault}") from fault
    return fnmatch.fnmatchcase(name, pattern)


def names_of(choice: Choice) -> tuple[str, ...]:
    """Everything a choice pattern may call this choice."""
    names = [choice.id, choice.label, choice.tier, kind_of(choice), choice.axis]
    if choice.encoding:
        names += [choice.encoding.label(), choice.encoding.family]
    return tuple(name for name in names if name)


def excluded_by(table: CostTable, pins: Pins | None) -> frozenset[str]:
    """Ids of the choices that ``pins`` rules out."""
    if pins is None:
        return frozenset()
    sites = [site.id for site in table.sites]
    for pattern, _ in (*pins.pin, *pins.forbid):
        if not any(matches(pattern, site) for site in sites):
            near = difflib.get_close_matches(pattern.removeprefix("re:"), sites, 1, 0.0)
            raise OptionError(f"pattern {pattern!r} matches no site; the nearest is {near[0] if near else 'none'!r}")
    excluded = set()
    met: set[str] = set()
    for choice in table.choices:
        for site in choice.sites:
            wanted = next((what for pattern, what in pins.pin if matches(pattern, site)), None)
            refused = next((what for pattern, what in pins.forbid if matches(pattern, site)), None)
            if wanted is not None:
                fits = any(matches(wanted, name) for name in names_of(choice))
                met |= {site} if fits else set()
                excluded |= set() if fits else {choice.id}
            if refused is not None and any(matches(refused, name) for name in names_of(choice)):
                excluded.add(choice.id)
    for site in sites:
        wanted = next((what for pattern, what in pins.pin if matches(pattern, site)), None)
        if wanted is not None and site not in met:
            raise OptionError(f"pin {wanted!r} meets no choice of site {site!r}; see the table's choices for that site")
    return frozenset(excluded)

"""Symbolic sizes compared and divided: two spellings of one size are one size.

In: ``Size`` trees. Out: canonical polynomials over symbols (and over whole sub-expressions that are no polynomial).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adaflex.runtime.region import OPERATORS, Size

# monomial (sorted atoms) -> coefficient
Polynomial = dict[tuple[str, ...], int]


def polynomial(size: Size) -> Polynomial:
    """The canonical form of a size; what is neither sum nor product is an atom named by its own canonical text."""
    if isinstance(size, int):
        return {(): size} if size else {}
    if isinstance(size, str):
        return {(size,): 1}
    parts = [polynomial(part) for part in size[1:]]
    if size[0] == "+":
        return _add(parts)
    if size[0] == "*":
        return _multiply(parts)
    if all(set(part) <= {()} for part in parts):
        value = parts[0].get((), 0)
        for part in parts[1:]:
            value = OPERATORS[size[0]](value, part.get((), 0))
        return {(): value} if value else {}
    text = size[0] + "(" + ",".join(_text(part) for part in parts) + ")"
    return {(text,): 1}


def _text(value: Polynomial) -> str:
    return "+".join(f"{count}*{'*'.join(atoms)}" for atoms, count in sorted(value.items()))


def _add(parts: Sequence[Polynomial]) -> Polynomial:
    whole: Counter[tuple[str, ...]] = Counter()
    for part in parts:
        for atoms, count in part.items():
            whole[atoms] += count
    return {atoms: count for atoms, count in whole.items() if count}


def _multiply(parts: Sequence[Polynomial]) -> Polynomial:
    whole: Polynomial = {(): 1}
    for part in parts:
        product: Counter[tuple[str, ...]] = Counter()
        for atoms, count in whole.items():
            for more, factor in part.items():
                product[tuple(sorted(atoms + more))] += count * factor
        whole = {atoms: count for atoms, count in product.items() if count}
    return whole


def same(left: Size, right: Size) -> bool:
    """Are the two sizes equal whatever their symbols' values?"""
    return left == right or polynomial(left) == polynomial(right)


def known(size: Size) -> int | None:
    """The size as a number where it depends on no symbol."""
    value = polynomial(size)
    return value.get((), 0) if set(value) <= {()} else None


def divides(size: Size, by: Size) -> Size | None:
    """size / by where ``by`` is a single monomial that divides every monomial of ``size``; else None."""
    top, bottom = polynomial(size), polynomial(by)
    if len(bottom) != 1:
        return 1 if top == bottom and bottom else None
    quotient = _quotient(top, bottom)
    if quotient is None or any("(" in name for names in quotient for name in names):
        return None
    parts = [_product((count, *names)) for names, count in quotient.items()]
    return 0 if not parts else parts[0] if len(parts) == 1 else ("+", *parts)


def is_multiple(size: Size, of: Size) -> bool:
    """Is ``size`` a multiple of ``of``, as far as the sizes' texts show? Also where no text of the quotient is at hand,
    because a division stands in it."""
    top, bottom = polynomial(size), polynomial(of)
    return bool(bottom) and (top == bottom or (len(bottom) == 1 and _quotient(top, bottom) is not None))


def _quotient(top: Polynomial, bottom: Polynomial) -> Polynomial | None:
    """A polynomial over a single monomial that divides all of its own; else None."""
    ((atoms, count),) = bottom.items()
    found: Polynomial = {}
    for monomial, factor in top.items():
        rest = Counter(monomial)
        rest.subtract(atoms)
        if min(rest.values(), default=0) < 0 or factor % count:
            return None
        found[tuple(rest.elements())] = factor // count
    return found


def _product(parts: Sequence[Size]) -> Size:
    kept = [part for part in parts if part != 1]
    return 1 if not kept else kept[0] if len(kept) == 1 else ("*", *kept)

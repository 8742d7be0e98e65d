"""How a call of a model names its arguments, with wrappers that libraries put around ``forward`` looked through.

In: a module. Out: its signature, the names of its positional arguments, where an argument at a position stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn


def call_signature(root: nn.Module) -> inspect.Signature:
    """The signature a user sees of ``root.forward``, decorators of libraries left out."""
    return inspect.signature(type(root).forward, follow_wrapped=False)


def positional_names(root: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of a call, in order; a last one "*name" takes any number more.

    A wrapper of ``*args`` that a library puts around ``forward`` is looked through.
    """
    for signature in (call_signature(root), inspect.signature(type(root).forward)):
        kinds = {each.name: each.kind for each in list(signature.parameters.values())[1:]}
        names = [name for name, kind in kinds.items() if kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
        rest = [f"*{name}" for name, kind in kinds.items() if kind == inspect.Parameter.VAR_POSITIONAL]
        if not rest:
            break
    return (*names, *rest)


def place_of(names: Sequence[str], position: int) -> tuple[str | int, ...]:
    """Where the argument at a position stands: its name, or that of the rest and a number."""
    plain = [name for name in names if not name.startswith("*")]
    if position < len(plain):
        return (plain[position],)
    return (names[-1][1:] if len(names) > len(plain) else "args", position - len(plain))

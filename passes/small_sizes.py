"""Sizes of 1 and 0: tracing takes every size for neither, so a model that asks for them went one way without a word.

In: a capture with sizes that vary, and the call it was made from. Out: guards for the sizes at which it does not hold.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaflex.passes.capture import Capture, Symbol, Weights, broken, draws
from adaflex.passes.sizes import Guard, evaluate

Path = tuple[str | int, ...]
TRUSTING = ("embedding_bag", "ctc_loss", "segment_reduce", "pack_padded_sequence")  # values that torch does not check
HALF_APART = 0.1  # of a model in half precision from the graph, which computes in fp32


def small_guards(
    capture: Capture, weights: Weights, model: nn.Module, spec: Any, given: Mapping[Path, Any]
) -> tuple[Guard, ...]:
    """``spec``: torch's nesting of (args, kwargs); ``given``: its leaves in order, by where they stand in the call.

    Each size that varies is cut to 1 and to 0, and the model's own answer is held against the graph's: with those of
    other arguments that are equal in this call, as batches are, and without them.
    """
    if any(draws(node) for node in capture.graph.graph.nodes):
        return ()

    trusting = any(map(_trusts, capture.graph.graph.nodes))

    def fails(symbols: Sequence[Symbol], size: int) -> bool:
        cut = _cut(capture, model, given, symbols, size)
        if cut is not None and trusting:  # places in a tensor that now ends earlier: torch would read behind its end
            cut = {path: each if each.is_floating_point() else torch.zeros_like(each) for path, each in cut.items()}
        return cut is not None and not _holds(capture, weights, model, spec, {**given, **cut}, size)

    groups: dict[Any, list[Symbol]] = {}
    for symbol in capture.symbols:
        groups.setdefault((symbol.hint, symbol.source and symbol.source[1]), []).append(symbol)
    found: list[Guard] = []
    sizes = (1,) if trusting else (1, 0)  # behind the end of empty tensors is every place
    for group, size in itertools.product(groups.values(), sizes):
        alone = [each for each in group if fails([each], size)]
        if fails(group, size):
            found += [("!=", each.name, size) for each in alone or group]
        else:  # only a call in which they differ goes wrong
            found += [("==", each.name, group[0 if each is not group[0] else 1].name) for each in alone]
    return tuple(found)


def _trusts(node: fx.Node) -> bool:
    """Does it read where its inputs' values say, unchecked? Kernels of other libraries may."""
    kind = node.target
    return isinstance(kind, torch._ops.OpOverload) and (
        kind.namespace not in ("aten", "prims") or any(name in str(kind) for name in TRUSTING)
    )


def _cut(
    capture: Capture, model: nn.Module, given: Mapping[Path, Any], symbols: Sequence[Symbol], size: int
) -> dict[Path, Tensor] | None:
    """The tensors of the call where these sizes are less; None where the others do not allow it, or a guard says so."""
    if any(each.hint is None for each in capture.symbols):
        return None
    values = {each.name: int(each.hint or 0) for each in capture.symbols} | {each.name: size for each in symbols}
    made: dict[Path, Tensor] = {}
    for each in capture.inputs:
        if each.is_state or each.dtype is None:
            continue
        shape = [evaluate(axis, values) for axis in each.shape]
        if any(not 0 <= new <= old for new, old in zip(shape, given[each.path].shape, strict=True)):
            return None
        made[each.path] = given[each.path].detach()[tuple(map(slice, shape))].clone()
    try:
        return made if broken(capture, _inputs(capture, model, {**given, **made})) is None else None
    except ZeroDivisionError:  # a guard that says nothing of such sizes: those calls are refused
        return None


def _inputs(capture: Capture, model: nn.Module, given: Mapping[Path, Any]) -> list[Any]:
    """The graph's inputs: the call's, and the buffers that it writes to."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return [buffers[each.name].clone() if each.is_state else given[each.path] for each in capture.inputs]


def _holds(
    capture: Capture, weights: Weights, model: nn.Module, spec: Any, given: Mapping[Path, Any], size: int
) -> bool:
    """Does the graph give what the model gives? Where the model gives nothing there is nothing to hold to."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    leaves = [each.clone() if isinstance(each, Tensor) else each for each in given.values()]
    args, kwargs = spec.unflatten(leaves)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = torch.func.functional_call(model, buffers, tuple(args), dict(kwargs))
    except Exception:
        return True
    try:
        made = capture.run(weights, _inputs(capture, model, given))[len(capture.mutations) :]
        return _equal(capture.out_spec.flatten_up_to(wanted), made, any(map(_is_half, model.parameters())))
    except ValueError:  # nested otherwise
        return False
    except Exception:
        return size == 0  # what torch's views cannot do with nothing a program may


def _is_half(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < 4


def _equal(wanted: Sequence[Any], made: Sequence[Any], half: bool) -> bool:
    pairs = [(a, b) for a, b in zip(wanted, made, strict=True) if isinstance(a, Tensor)]
    return all(isinstance(b, Tensor) and a.shape == b.shape and _near(a, b, half) for a, b in pairs)


def _near(wanted: Tensor, made: Tensor, half: bool = False) -> bool:
    """As far apart as two orders of summing are, not two ways of computing; ``half``: of weights in half precision."""
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return torch.equal(wanted, made)
    wide = torch.complex128 if wanted.is_complex() else torch.float64
    a, b = wanted.to(wide), made.to(wide)
    if half or _is_half(wanted):  # each op of the model rounded, none of the graph's: far apart in single numbers
        finite = a.isfinite()
        return torch.equal(finite, b.isfinite()) and bool((a - b)[finite].norm() <= HALF_APART * a[finite].norm())
    return torch.allclose(b, a, 1e-3, 1e-3 * float(a.abs().nan_to_num(posinf=0.0).mean() if a.numel() else 0), True)

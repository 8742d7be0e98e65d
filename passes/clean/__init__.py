"""Clean-up: one tuple of passes, read from top to bottom, gives the canonical graph that codegen relies on.

In: an ``fx.Graph`` of ATen ops from either door, placeholders with ``meta["role"]``. Out: the same graph, canonical.
"""

from __future__ import annotations

import logging
import time

from torch import fx

from adaflex.passes.clean import (
    activations,
    attention,
    channels,
    convolutions,
    linears,
    masks,
    norms,
    refresh,
    remove,
    spelling,
    widen,
)
from adaflex.passes.clean.tools import Pass
from adaflex.passes.torch_compat import fake_mode_of, no_new_guards
from adaflex.settings import settings

__all__ = ["PASSES", "clean"]

log = logging.getLogger("adaflex.passes")

PASSES: tuple[Pass, ...] = (
    remove.asserts,
    widen.half_models,
    spelling.spellings,
    spelling.casts,
    remove.no_ops,
    spelling.first_results,
    spelling.splits,
    spelling.whole_ops,
    spelling.fills,
    spelling.scalars,
    remove.common_subexpressions,
    linears.transposed_constants,
    linears.products,
    remove.views_of_views,
    linears.unflattened,
    linears.added_biases,
    linears.empty_biases,
    norms.batch_norms,
    norms.rms_norms,
    activations.activations,
    convolutions.convolutions,
    channels.channels_last,
    remove.permutations,
    masks.gathers,
    masks.open_masks,
    attention.attentions,
    masks.attention_masks,
    attention.grouped_heads,
    attention.causal_flags,
    remove.dead_code,
    refresh.values,
    remove.no_ops,
    remove.views_of_views,
    remove.common_subexpressions,
    remove.dead_code,
)


def clean(graph: fx.Graph, name: str = "graph") -> fx.Graph:
    """Run every pass on the graph, in place. Each is logged with its time and what it changed."""
    mode = next(
        (fake_mode_of(node.meta.get("val")) for node in graph.nodes if fake_mode_of(node.meta.get("val"))), None
    )
    _dump(graph, name, 0, "captured")
    for number, step in enumerate(PASSES, 1):
        begin, before = time.perf_counter(), len(graph.nodes)
        with no_new_guards(mode):
            changed = step(graph)
        label = f"{step.__module__.rpartition('.')[2]}.{step.__name__}"
        seconds = time.perf_counter() - begin
        log.debug("%s: %d changed, %d -> %d nodes, %.1f ms", label, changed, before, len(graph.nodes), seconds * 1e3)
        if changed:
            _dump(graph, name, number, label)
    graph.lint()
    return graph


def _dump(graph: fx.Graph, name: str, number: int, label: str) -> None:
    folder = settings().debug_dir
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{number:02d}-{label}.txt").write_text(str(graph) + "\n")

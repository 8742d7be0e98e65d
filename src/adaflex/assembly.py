"""From a plan's choices to something that runs: lowering, packing, rendering, building, loading.

In: a ``Capture``, its weights and sites, a ``Decision``. Out: ``Assembled`` (program and bytes), and the
``Executor`` that runs it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adaflex import building
from adaflex.codegen.draft import Assignment, ConstantUse, Draft
from adaflex.codegen.finish import finish, place
from adaflex.codegen.kernels.family import Kernel, kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.codegen.lower import lower
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.decision import Decision
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.restructure import Restructured, restructure
from adaflex.passes.sites import Sites
from adaflex.passes.widths import bias_of, dense
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import Program
from adaflex.runtime.stream import Stream
from adaflex.runtime.stream_file import keep
from adaflex.solver.table import Encoding
from adaflex.streaming import sites_by_node, staged, streamable

Provider = Callable[[str, Encoding], Encoded]  # (site, encoding) -> the tensor that ships


@dataclass(frozen=True, eq=False)
class Assembled:
    """A program and the bytes of its constants."""

    program: Program
    weights: Tensor
    stream: Stream | None = None  # of constants that are read from disk at every call


def assignments(capture: Capture, sites: Sites, decision: Decision) -> dict[str, Assignment]:
    """Per placeholder of a decided weight, what lowering needs to know; sites without an encoding keep theirs."""
    found = {}
    for site in sites.sites:
        encoding = dense(decision.encodings.get(site.id, sites.keep[site.id]))
        family: Kernel = kernel(MENU, encoding.family)
        constant, _ = sites.source[site.id]
        shape = site.shape
        found[capture.constants[constant].node] = Assignment(
            encoding=encoding,
            form=family.form(encoding),
            size_bytes=family.size_bytes(shape, encoding),
            call=family.call(encoding, shape[1], shape[0]),
        )
    return found


def draft_of(capture: Capture, sites: Sites, decision: Decision) -> Draft:
    """The lowered, unpacked program of a set of choices: of a capture that is already of their structure."""
    return lower(capture, assignments(capture, sites, decision))


def blocks_of(capture: Capture, sites: Sites) -> tuple[tuple[str, ...], ...]:
    """The sites that can be streamed, in the order of use, by block of prefetch."""
    return streamable(draft_of(capture, sites, Decision({})), sites_by_node(capture, sites))


def _drafted(capture: Capture, sites: Sites, decision: Decision) -> tuple[Restructured, Draft]:
    """The model as the decision shapes it, lowered, and its constants where the decision has them."""
    small = restructure(capture, sites, decision)
    draft = draft_of(small.capture, small.sites, decision)
    if set(decision.tiers.values()) - {"memory"}:  # blocks are those of the whole model: skipped ones are empty
        by_node = sites_by_node(small.capture, small.sites)
        draft = staged(draft, by_node, blocks_of(capture, sites), decision.tiers)
    return small, draft


def skeleton(capture: Capture, sites: Sites, decision: Decision) -> tuple[Program, int]:
    """The program of a set of choices without its bytes, and how many bytes its constants take in memory."""
    small, draft = _drafted(capture, sites, decision)
    return place(draft, _names(small.capture))


def assemble(capture: Capture, weights: Weights, sites: Sites, decision: Decision, provider: Provider) -> Assembled:
    """Lower and pack a set of choices; what is streamed goes to a file of the cache."""
    small, draft = _drafted(capture, sites, decision)
    kept = {site: provider(site, decision.encodings[site]).parts["kept"] for site in set(small.cut.values())}
    capture, sites, weights = small.capture, small.sites, small.weights(weights, kept)
    by_node = {constant.node: weight for constant, weight in zip(capture.constants, weights, strict=True)}
    site_of = sites_by_node(capture, sites)
    for bias, shift in _shifts(capture, sites, decision, provider).items():
        by_node[bias] = by_node[bias] + shift.to(by_node[bias].dtype)

    def pack(use: ConstantUse) -> Tensor:
        assert use.encoding is not None
        site = site_of[use.node]
        return kernel(MENU, use.encoding.family).pack(provider(site, decision.encodings.get(site, use.encoding)))

    program, made = finish(draft, by_node, _names(capture), pack)
    return Assembled(program, made.resident, keep(made.streamed.numpy()) if program.blocks else None)


def _shifts(capture: Capture, sites: Sites, decision: Decision, provider: Provider) -> dict[str, Tensor]:
    """What is added to biases, by their placeholders: repair makes up for the mean error of rounding there."""
    nodes = {node.name: node for node in capture.graph.graph.nodes}
    found = {}
    for site in sites.sites:
        encoding = decision.encodings.get(site.id)
        if encoding is None or encoding.rounding != "compensated":
            continue
        shift, bias = provider(site.id, encoding).parts.get("shift"), bias_of(nodes[sites.uses[site.id][0]])
        if shift is not None and bias is not None:
            found[bias.name] = shift
    return found


def _names(capture: Capture) -> dict[str, str]:
    return {constant.node: constant.name for constant in capture.constants}


def executor(assembled: Assembled, here: Machine, max_concurrency: int = 1) -> Executor:
    """A program ready to be called, on the device that the machine names."""
    if here.device != "cpu":
        from adaflex.gpu import GpuExecutor

        return GpuExecutor(assembled.program, assembled.weights, max_concurrency)
    return building.executor(
        assembled.program, assembled.weights, here.isa, here.threads, max_concurrency, stream=assembled.stream
    )

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
from adaflex.passes.restructure import restructure
from adaflex.passes.sites import Sites
from adaflex.runtime.execute import Executor
from adaflex.runtime.program import Program
from adaflex.solver.table import Encoding

Provider = Callable[[str, Encoding], Encoded]  # (site, encoding) -> the tensor that ships


@dataclass(frozen=True, eq=False)
class Assembled:
    """A program and the bytes of its constants."""

    program: Program
    weights: Tensor


def assignments(capture: Capture, sites: Sites, decision: Decision) -> dict[str, Assignment]:
    """Per placeholder of a decided weight, what lowering needs to know; sites without an encoding keep theirs."""
    found = {}
    for site in sites.sites:
        encoding = decision.encodings.get(site.id, sites.keep[site.id])
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


def skeleton(capture: Capture, sites: Sites, decision: Decision) -> tuple[Program, int]:
    """The program of a set of choices without its bytes, and how many bytes its constants take."""
    small = restructure(capture, sites, decision)
    program, _, total = place(draft_of(small.capture, small.sites, decision), _names(small.capture))
    return program, total


def assemble(capture: Capture, weights: Weights, sites: Sites, decision: Decision, provider: Provider) -> Assembled:
    """Lower and pack a set of choices."""
    small = restructure(capture, sites, decision)
    capture, sites, weights = small.capture, small.sites, small.weights(weights)
    draft = draft_of(capture, sites, decision)
    by_node = {constant.node: weight for constant, weight in zip(capture.constants, weights, strict=True)}
    site_of = {capture.constants[sites.source[site.id][0]].node: site.id for site in sites.sites}

    def pack(use: ConstantUse) -> Tensor:
        assert use.encoding is not None
        return kernel(MENU, use.encoding.family).pack(provider(site_of[use.node], use.encoding))

    program, block = finish(draft, by_node, _names(capture), pack)
    return Assembled(program, block)


def _names(capture: Capture) -> dict[str, str]:
    return {constant.node: constant.name for constant in capture.constants}


def executor(assembled: Assembled, here: Machine, max_concurrency: int = 1) -> Executor:
    """A program ready to be called."""
    return building.executor(assembled.program, assembled.weights, here.isa, here.threads, max_concurrency)

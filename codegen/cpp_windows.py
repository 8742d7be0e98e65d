"""Prints steps of windows that slide over images: the call of the kernel library's function.

In: a ``WindowStep``. Out: the C++ text inside its function.
"""

from __future__ import annotations

from adaflex.codegen.cpp_region import literal, size_text
from adaflex.runtime.program import Program, WindowStep

FUNCTIONS = {"patches": "patches", "depthwise": "sums", "mean": "sums", "max": "maxima"}


def window_text(step: WindowStep, program: Program) -> list[str]:
    """The rows [r0, r1) of all images, one image after the other."""

    def size(given: object) -> str:
        return size_text(given, program.symbols)  # type: ignore[arg-type]

    def both(numbers: tuple[int, ...]) -> str:
        return f"{{{', '.join(map(str, numbers))}}}"

    weight = f"(const float*)t.p[{step.weight}]" if step.weight >= 0 else "nullptr"
    share = literal(1.0 / step.taps if step.kind == "mean" else 1.0)
    strides = ", ".join(size(stride) for stride in step.x.strides)
    places = ", ".join(map(both, (step.kernel, step.stride, step.padding, step.dilation)))
    return [
        f"const af::Windows w{{{size(step.height)}, {size(step.width)}, {step.channels}, {{{strides}}}, {places}}};",
        f"af::WindowTiles<0>::{FUNCTIONS[step.kind]}(w, (const float*)t.p[{step.x.slot}] + {size(step.x.offset)},",
        f"{weight}, {share}, (float*)t.p[{step.out}], r0, r1);",
    ]

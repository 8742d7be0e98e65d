"""Plan the scratchpad of an accelerator: read a problem, pack it, say what does not fit, draw it. Needs no torch.

Run: python examples/04_memory_planning.py [PROBLEM.csv CAPACITY]. Without arguments a small network is made up.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from adaflex.solver.draw import packing_svg
from adaflex.solver.memplan import Buffer, MemoryProblem, Operator, buffers_from_csv, pack, pack_problem, validate
from adaflex.solver.units import parse_bytes, show_bytes


def network(layers: int = 6) -> MemoryProblem:
    """A residual network: each block reads the stream, widens it four times and adds the result back."""
    operators, buffers = [], [Buffer("x0", 96 << 10, 0, 1)]
    for k in range(layers):
        wide = [f"wide{k}.{part}" for part in range(3)]
        operators += [Operator(f"expand{k}.{part}", (f"x{k}",), (name,)) for part, name in enumerate(wide)]
        operators += [Operator(f"reduce{k}.{part}", (name,), (f"thin{k}.{part}",)) for part, name in enumerate(wide)]
        thin = tuple(f"thin{k}.{part}" for part in range(3))
        operators.append(Operator(f"add{k}", (f"x{k}", *thin), (f"x{k + 1}",)))
        buffers += [Buffer(name, 384 << 10, 0, 1) for name in wide]
        buffers += [Buffer(name, 32 << 10, 0, 1) for name in thin]
        buffers.append(Buffer(f"x{k + 1}", 96 << 10, 0, 1))
    return MemoryProblem(tuple(buffers), operators=tuple(operators), alignment=64)


def main() -> int:
    """Pack what the command line names, or the network above."""
    if len(sys.argv) > 2:
        path, capacity = Path(sys.argv[1]), parse_bytes(sys.argv[2])
        buffers = buffers_from_csv(path.read_bytes(), str(path))
        packing = pack(buffers, capacity=capacity)
    else:
        problem, capacity = network(), 640 << 10
        packing = pack_problem(problem, capacity=capacity)
        print(f"operators in the order of least memory: {', '.join(packing.order[:6])}, ...")
        from adaflex.solver.pack.order import buffers_in_order

        buffers = buffers_in_order(problem.operators, packing.order, problem.buffers)
    print(f"{len(buffers)} buffers, {show_bytes(capacity)}: {packing.status}")
    if packing.status == "infeasible":
        print(f"  {packing.reason}: {', '.join(packing.blame[:6])}")
        packing = pack(buffers, alignment=64)
        print(f"  the least height is {show_bytes(packing.height)} ({packing.status})")
    offsets = dict(packing.offsets)
    faults = validate(buffers, offsets)
    print(f"  height {show_bytes(packing.height)}, bound {show_bytes(packing.bound)}, {len(faults)} faults")
    for buffer in buffers[:5]:
        print(f"  {buffer.id}: offset {offsets[buffer.id]}, steps {buffer.first} to {buffer.end}")
    picture = Path(tempfile.mkdtemp(prefix="adaflex-")) / "memory.svg"
    picture.write_text(packing_svg(buffers, offsets, bound=packing.bound, capacity=capacity))
    print(f"picture: {picture}")
    return 0 if not faults else 1


if __name__ == "__main__":
    raise SystemExit(main())

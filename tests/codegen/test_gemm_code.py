"""Machine code of the AVX-512 tiles: inner loops keep every accumulator in its register.

GCC copies or spills accumulators when intrinsics, unrolling or an epilogue let it; speed then halves and no result
changes. So the loops themselves are read: disassembled by objdump, a loop being the span of a backward jump.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from adaflex import native

HERE = Path(__file__).resolve().parent
CPP = HERE.parents[1] / "codegen" / "cpp"
AVX512 = ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512")
MULTIPLY = re.compile(r"vpdpbusd|vdpbf16ps|vfmadd231ps %zmm\d+,%zmm\d+,%zmm\d+")
MOVE = re.compile(r"vmov\w+\s+%zmm\d+,%zmm\d+$")
STACK = re.compile(r"zmm.*\(%r[sb]p|\(%r[sb]p.*zmm")

Code = list[tuple[int, str]]  # address, instruction


def functions(binary: Path) -> dict[str, Code]:
    tool = shutil.which("objdump")
    if tool is None:
        pytest.skip("objdump is not installed")
    command = [tool, "-d", "-C", "--no-show-raw-insn", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Code] = {}
    name = ""
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = re.sub(r"af::gemm::|^void |\(.*", "", head.group(1))
            found[name] = []
        elif name and (entry := re.match(r"\s+([0-9a-f]+):\s+(.*)$", line)):
            found[name].append((int(entry.group(1), 16), entry.group(2).strip()))
    return found


def inner_loop(code: Code) -> list[str]:
    """The shortest loop that multiplies."""
    loops = []
    for at, text in code:
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if jump and code[0][0] <= int(jump.group(1), 16) <= at:
            body = [instruction for where, instruction in code if int(jump.group(1), 16) <= where <= at]
            if any(MULTIPLY.match(instruction) for instruction in body):
                loops.append(body)
    return min(loops, key=len)


@pytest.fixture(scope="module")
def harness() -> Path:
    if native.compiler() is None:
        pytest.skip("no compiler")
    source = (HERE / "gemm_harness.cpp").read_text()
    return native.build(source, includes=[CPP], flags=AVX512, name="gemm-harness-avx512")


@pytest.fixture(scope="module")
def code(harness: Path) -> dict[str, Code]:
    return functions(harness)


def test_libraries_share_nothing(harness: Path) -> None:
    """An exported table of tiles would serve the library of another instruction set in the same process too."""
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("nm is not installed")
    listing = subprocess.run([tool, "-DC", str(harness)], capture_output=True, text=True, check=True).stdout
    assert "w8a8" in listing
    assert not [line for line in listing.splitlines() if "af::gemm::" in line]


@pytest.mark.parametrize("op", ["U8S8", "Bf16", "F32"])
@pytest.mark.parametrize("rows", range(1, 9))
def test_plain_tiles_neither_copy_nor_spill(code: dict[str, Code], op: str, rows: int) -> None:
    body = inner_loop(code[f"tile<{op}, {rows}>"])
    assert sum(bool(MULTIPLY.match(line)) for line in body) % (2 * rows) == 0
    assert not [line for line in body if STACK.search(line)]
    moves = sum(bool(MOVE.match(line)) for line in body)
    assert moves <= (4 if rows == 3 else 0)  # two chains of three rows: GCC renames one weight a step, without loss


@pytest.mark.parametrize(
    "name",
    [
        *(f"grouped_tile<U8S8, {group}, false, 8>" for group in (32, 64, 128)),
        *(f"grouped_tile<U8S4, {group}, {asym}, 8>" for group in (32, 64, 128) for asym in ("false", "true")),
        "weight_only_tile<Bf16S4, false, 8>",
        "weight_only_tile<Bf16S4, true, 8>",
    ],
)
def test_full_tiles_with_scales_do_not_spill(code: dict[str, Code], name: str) -> None:
    body = inner_loop(code[name])
    multiplies = sum(bool(MULTIPLY.match(line)) for line in body)
    assert multiplies >= 32
    assert not [line for line in code[name] if STACK.search(line[1])]
    moves = sum(bool(MOVE.match(line)) for line in body)  # zeroing of a group's sums and a few renames: no port needed
    assert moves <= multiplies / 4


def test_a_planted_spill_is_seen() -> None:
    loop = [(16, "vpdpbusd %zmm1,%zmm2,%zmm0"), (22, "vmovdqa64 %zmm0,0x40(%rsp)"), (30, "jne    10 <f+0x10>")]
    body = inner_loop([(0, "push   %rbp"), *loop])
    assert [line for line in body if STACK.search(line)] == ["vmovdqa64 %zmm0,0x40(%rsp)"]
    assert MOVE.match("vmovdqa64 %zmm3,%zmm0") and not MOVE.match("vmovdqa64 (%rax),%zmm0")

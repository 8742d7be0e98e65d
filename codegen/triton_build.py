"""Writes printed Triton text to a file, imports it, and compiles its kernels ahead of time without a GPU.

In: Triton source; a kernel's argument types and constants. Out: a Python module; a cubin with what it uses: registers,
stack, spills, shared memory and the machine's own opcodes, read back from the cubin by the tools of Triton's wheel.
Triton inspects the source of what it compiles, so text must lie in a file: in the cache, under its content's digest.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from adaflex.errors import BuildError
from adaflex.native import cache_folder

HEAD = (
    "import triton\n"
    "import triton.language as tl\n\n"
    "from adaflex.codegen.triton_templates import scalar as af\n"
)  # fmt: skip
TOOL_SECONDS = 60


@dataclass(frozen=True)
class Spec:
    """What is compiled: argument types by name ("*fp32", "i32"; "constexpr" ones are in ``constants``), launch sizes.

    Pointers are taken to be 16-byte aligned, and the arguments of ``whole`` to be multiples of 16.
    """

    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """A kernel compiled for one architecture."""

    name: str
    architecture: int  # 80, 90
    cubin: bytes
    registers: int  # per thread
    stack_bytes: int  # per thread
    shared_bytes: int  # per block
    opcodes: Mapping[str, int]  # how often each machine opcode stands in the code

    @property
    def spills(self) -> int:
        """Loads and stores of local memory: registers that did not fit."""
        return self.opcodes.get("LDL", 0) + self.opcodes.get("STL", 0)


def write(text: str) -> Path:
    """The file that holds this text below the cache; written once, complete or not at all."""
    folder = cache_folder("triton")
    path = folder / f"kernels_{hashlib.sha256(text.encode()).hexdigest()[:24]}.py"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".partial", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)  # noqa: PTH105 (the name of the temporary file is text)
    return path


def load(path: Path) -> ModuleType:
    """The module of a written file. Raises ``BuildError`` where Triton is missing or refuses the text."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as fault:
        raise BuildError(f"Triton cannot be imported ({fault}); install the 'cuda' extra for GPU kernels") from fault
    return module


def compile_kernel(function: Any, spec: Spec, architecture: int) -> Built:
    """Compile a kernel (a ``triton.jit`` function of a loaded module) for sm_<architecture>; no driver is asked."""
    import triton
    from triton.backends.compiler import GPUTarget

    names = list(spec.signature)
    whole = [k for k, name in enumerate(names) if spec.signature[name].startswith("*") or name in spec.whole]
    source = triton.compiler.ASTSource(
        function,
        dict(spec.signature),
        constexprs={(names.index(name),): value for name, value in spec.constants.items()},
        attrs={(k,): [["tt.divisibility", 16]] for k in whole},
    )
    options = {"num_warps": spec.warps, "num_stages": spec.stages, "enable_fp_fusion": True}
    try:
        with triton.knobs.cache.scope():
            triton.knobs.cache.dir = str(cache_folder("triton-cubin"))
            made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except Exception as fault:
        first = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise BuildError(f"Triton failed on '{names}' for sm_{architecture}: {first}") from fault
    registers, stack = _resources(made.asm["cubin"])
    opcodes = _opcodes(made.asm["cubin"])
    return Built(made.metadata.name, architecture, made.asm["cubin"], registers, stack, made.metadata.shared, opcodes)


def tool(name: str) -> Path:
    """A tool of Triton's wheel: "cuobjdump", "ptxas", "nvdisasm"."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command: Sequence[str] = [str(tool("cuobjdump")), option, file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as fault:
            raise BuildError(f"cuobjdump of Triton's wheel failed on a cubin: {fault}") from fault
    return done.stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread."""
    text = _dump(cubin, "--dump-resource-usage")
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", text)
    if found is None:
        raise BuildError(f"cuobjdump reported no registers for a cubin: {text[:200]!r}")
    return int(found[1]), int(found[2])


def _opcodes(cubin: bytes) -> dict[str, int]:
    """Machine opcodes without their modifiers: "HGMMA", "LDL", ..."""
    lines = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)", _dump(cubin, "--dump-sass"), re.M)
    return dict(Counter(lines))

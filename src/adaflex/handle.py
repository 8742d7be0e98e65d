"""A compiled model as its user holds it: call it, save it, ask what it promised and what it takes.

In: an ``Executor`` with its signature. Out: ``Program``. Loading one imports neither the solver nor compiler passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adaflex import __version__, building, machine
from adaflex.codegen.cpp import include_folder
from adaflex.codegen.products import product_reads
from adaflex.errors import OptionError
from adaflex.runtime import artifact
from adaflex.runtime.artifact_check import KernelLibrary
from adaflex.runtime.execute import Executor
from adaflex.runtime.kernels import NativeKernels
from adaflex.runtime.signature import Signature
from adaflex.runtime.verdict import Verdict, from_json

NATIVE = "kernels.so"


class Program:
    """A model that runs by its plan. Call it with the model's own arguments; outputs are fresh tensors.

    Not picklable (save it instead); safe to fork only before its first call.
    """

    def __init__(
        self,
        executor: Executor,
        signature: Signature,
        manifest: Mapping[str, Any],
        verdict: Verdict | None,
        state: tuple[Tensor, ...] = (),
        written: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.executor, self.signature, self.manifest = executor, signature, manifest
        self.verdict = verdict
        self._state, self._written = state, written

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once. ``OptionError`` for arguments that are missing, unknown, or of another shape or dtype."""
        inputs = self.signature.bind(args, kwargs)
        outputs = self.executor(*inputs, *self._state)
        for output, place in self._written:
            self._state[place].copy_(outputs[output])
        self.signature.write(inputs, outputs)
        return self.signature.restore(outputs)

    def __reduce__(self) -> Any:
        raise TypeError("an AdaFlex program cannot be pickled; save it with .save(path) and load it with adaflex.load")

    def memory(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        """Planned bytes of a call with these arguments: weights, arena, library temporaries, total."""
        return self.executor.memory([*self.signature.bind(args, kwargs), *self._state])

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan as plain data: status, choices, totals, bound."""
        return dict(self.manifest.get("plan", {}))

    def save(self, path: str | Path, *, native: bool = False) -> str:
        """Write one file that ``adaflex.load`` runs without the model's code; its digest ("sha256:...").

        ``native`` adds the built kernels, which ``load`` uses only under ``trust``. The old file stays until the new
        one is whole.
        """
        if self._state:
            raise OptionError(
                "this model writes to its own buffers, which a file cannot hand on: hand them in and out as tensors, "
                "or use torch.compile(model, backend='adaflex')"
            )
        kernels = self.executor.kernels
        parts = {NATIVE: kernels.path.read_bytes()} if native and isinstance(kernels, NativeKernels) else None
        runs = self.executor
        stream = runs.staging.stream if runs.staging is not None else None
        return artifact.write(path, runs.program, runs.weights, self.manifest, parts, stream)

    def to_json(self) -> str:
        """The manifest."""
        return json.dumps(self.manifest, indent=1, sort_keys=True)


def load(
    path: str | Path, *, trust: str | bool | None = None, threads: int | None = None, max_concurrency: int = 1
) -> Program:
    """A saved program. Nothing in the file is executed: its kernels are rendered and built here, and cached.

    ``trust``: True or the file's own "sha256:..." digest lets the kernels that it carries be used instead.
    Raises ``ArtifactError`` for a file that is damaged, from the future, or hostile.
    """
    found = artifact.read(path, kernel_library(), trust)
    isa, count = machine.isa(), machine.thread_count(threads)
    native = found.native.get(NATIVE)
    runs = building.executor(found.program, found.weights, isa, count, max_concurrency, native, found.stream)
    signature = Signature.from_json(found.manifest.get("signature"))
    return Program(runs, signature, found.manifest, _verdict(found.manifest))


def kernel_library() -> KernelLibrary:
    """The kernels that a program from a file may name."""
    return KernelLibrary({header.name for header in include_folder().glob("*.h")}, product_reads)


def manifest_of(signature: Signature, plan: Mapping[str, Any], verdict: Verdict | None) -> dict[str, Any]:
    """What an artifact says of itself; plain data, the same for the same plan."""
    return {
        "adaflex": __version__,
        "signature": signature.to_json(),
        "plan": dict(plan),
        "machine": [list(pair) for pair in machine.fingerprint()],
        "verdict": verdict.to_json() if verdict is not None else None,
    }


def _verdict(manifest: Mapping[str, Any]) -> Verdict | None:
    given = manifest.get("verdict")
    return from_json(given) if given is not None else None

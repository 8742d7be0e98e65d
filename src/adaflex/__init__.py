"""AdaFlex: precision, sparsity, skips and placement of every layer, decided together under your budgets.

Public names are loaded when first asked for, so ``import adaflex`` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AdaflexError": "adaflex.errors",
    "Calibration": "adaflex.passes.calibration",
    "allocate": "adaflex.solver.allocate",
    "compile": "adaflex.api",
    "load": "adaflex.handle",
    "memplan": "adaflex.solver.memplan",
    "plan": "adaflex.api",
    "programs": "adaflex.backend",
}

__all__ = ["AdaflexError", "Calibration", "__version__", "allocate", "compile", "load", "memplan", "plan", "programs"]

if TYPE_CHECKING:
    from adaflex.errors import AdaflexError


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adaflex' has no attribute '{name}'")
    module = importlib.import_module(_HOME[name])
    return module if _HOME[name].endswith("." + name) and not hasattr(module, name) else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)

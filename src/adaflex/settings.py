"""The one place that reads the environment.

In: environment variables. Out: a frozen ``Settings``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir


@dataclass(frozen=True)
class Settings:
    """What the environment decides, and nothing else does."""

    cache_dir: Path  # built kernels and measured scores
    cache_named: bool  # the user named the cache: then failing to write it is an error, not a fallback
    debug_dir: Path | None  # graphs before and after each pass, the .lp, plan and sources are dumped here
    compiler: str | None  # C++ compiler to use; None: g++ or c++ from PATH
    isa: str | None  # force a lower instruction set: "avx512", "avx2" or "portable"
    build_timeout_s: float  # a compiler that runs longer is killed


def settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings now; tests pass their own mapping."""
    env = os.environ if environment is None else environment
    named = env.get("ADAFLEX_CACHE_DIR", "")
    debug = env.get("ADAFLEX_DEBUG", "")
    return Settings(
        cache_dir=Path(named) if named else Path(user_cache_dir("adaflex")),
        cache_named=bool(named),
        debug_dir=Path(debug) if debug else None,
        compiler=env.get("ADAFLEX_CXX") or None,
        isa=env.get("ADAFLEX_ISA") or None,
        build_timeout_s=float(env.get("ADAFLEX_BUILD_TIMEOUT", "120")),
    )

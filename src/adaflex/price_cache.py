"""Prices of kernels kept between runs: they belong to a machine, not to a model.

In: what a price depends on beside the kernel, and the cache folder. Out: ``PriceCache``; a file that cannot be read is
one that is not there, and a price that was disturbed while it was measured is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from adaflex.codegen.cpp import include_folder
from adaflex.native import compiler
from adaflex.passes.menu import Machine
from adaflex.passes.score_cache import write_json
from adaflex.pricing import PRICES_VERSION, Price, Spec

log = logging.getLogger("adaflex.pricing")

FOLDER = "prices"
LOCK_TIMEOUT_S = 30


class PriceCache:
    """Prices of this machine, at one instruction set and number of threads."""

    def __init__(self, folder: Path, here: Machine) -> None:
        held = {path.name: path.read_text() for path in sorted(Path(include_folder()).glob("*.h"))}
        wanted = [PRICES_VERSION, asdict(here), str(compiler()), held]
        self.path = folder / FOLDER / f"{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]}.json"
        self.prices = self._read()

    def get(self, spec: Spec) -> Price | None:
        """The price kept for this kernel."""
        return self.prices.get(repr(spec))

    def put(self, prices: Mapping[Spec, Price]) -> None:
        """Keep the calm ones, beside whatever another process has kept meanwhile."""
        self.prices |= {repr(spec): price for spec, price in prices.items() if price.calm}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_S):
                self.prices = self._read() | self.prices
                write_json(self.path, {name: asdict(price) for name, price in self.prices.items()})
        except OSError as fault:
            log.info("prices could not be kept (%s)", fault)

    def _read(self) -> dict[str, Price]:
        try:
            found = json.loads(self.path.read_text())
            return {str(k): Price(int(v["time_ns"]), float(v["spread"])) for k, v in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            log.warning("kept prices cannot be read (%s); they are measured again", fault)
            return {}

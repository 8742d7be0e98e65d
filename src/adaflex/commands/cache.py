"""``adaflex cache``: show or clear measured scores and built kernels.

In: the cache folder (ADAFLEX_CACHE_DIR, else the system's place for caches). Out: what it holds, or what was deleted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from adaflex.errors import CacheError
from adaflex.settings import settings
from adaflex.solver.units import show_bytes

HELP = "show or clear measured scores, built kernels and streamed weights"
PARTS = {
    "scores": "*.json*",
    "encoded": "*.npz",
    "prices": "*.json*",
    "native": "*",
    "streams": "*",
}  # folder of the cache -> its files


@dataclass(frozen=True)
class Part:
    """A folder of the cache."""

    folder: str
    files: int
    size_bytes: int


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show", help="default show")
    parser.add_argument(
        "--only",
        choices=tuple(PARTS),
        help="measured losses, repaired tensors, prices, kernels, streamed weights",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of one part of the cache; nothing else in the folder is touched."""
    return sorted(path for path in (folder / name).glob(PARTS[name]) if path.is_file())


def parts_of(folder: Path) -> dict[str, Part]:
    """What each part of the cache holds; locks are not counted."""
    found = {}
    for name in PARTS:
        files = [path for path in files_of(folder, name) if path.suffix != ".lock"]
        found[name] = Part(str(folder / name), len(files), sum(path.stat().st_size for path in files))
    return found


def run(args: argparse.Namespace) -> int:
    """Show or clear, print."""
    folder = settings().cache_dir
    parts = {name: part for name, part in parts_of(folder).items() if args.only in (None, name)}
    if args.action == "clear":
        for name in parts:
            _clear(folder, name)
    if args.json:
        found = {"folder": str(folder), "action": args.action, "parts": {n: asdict(p) for n, p in parts.items()}}
        print(json.dumps(found))
        return 0
    word = "deleted " if args.action == "clear" else ""
    print(f"{folder}")
    for name, part in parts.items():
        print(f"  {name}: {word}{part.files} files, {show_bytes(part.size_bytes)}")
    return 0


def _clear(folder: Path, name: str) -> None:
    for path in files_of(folder, name):
        try:
            path.unlink(missing_ok=True)
        except OSError as fault:
            raise CacheError(f"'{path}' cannot be deleted ({fault}); delete it by hand") from fault

"""Builds C++ into a shared library, once per content.

In: C++ text, include folders, flags. Out: the path of a ``.so`` in the cache, or a ``BuildError``.
The key is a digest of the text, every header beside it, the flags and the compiler's version, so a changed
header or compiler never meets a stale library. The library appears under its name by rename: never half-written; its
own digest follows its last byte, and a library that does not match it any more is built again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from adaflex.errors import BuildError, CacheError
from adaflex.settings import Settings, settings

log = logging.getLogger("adaflex.native")

# a static table in a template would be one symbol for all libraries of the process, whatever their instruction set
ONE_LIBRARY = ("-fno-gnu-unique", "-fvisibility-inlines-hidden")
BASE_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-pthread", "-Wno-psabi", *ONE_LIBRARY)


SEAL = 40  # bytes of the mark and SHA-256 that follow a library


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answered ``--version``."""

    path: str
    version: str


@functools.cache
def _probe(command: str) -> Compiler | None:
    path = shutil.which(command)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return Compiler(path, done.stdout.splitlines()[0] if done.stdout else "unknown")


def compiler(config: Settings | None = None) -> Compiler | None:
    """The C++ compiler that would be used, or None where there is none."""
    config = config or settings()
    if config.compiler is not None:
        return _probe(config.compiler)
    return _probe("g++") or _probe("c++")


def cache_folder(name: str, config: Settings | None = None) -> Path:
    """A writable folder of mode 0700 below the cache; a temporary one where the default cache is not writable."""
    config = config or settings()
    folder = config.cache_dir / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
        return folder
    except OSError as fault:
        if config.cache_named:
            raise CacheError(
                f"ADAFLEX_CACHE_DIR={config.cache_dir} cannot be written ({fault}); name a writable folder or unset it"
            ) from fault
        return _temporary_cache(name)


@functools.cache
def _temporary_cache(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"adaflex-{name}-"))
    log.warning("the default cache is not writable; using %s for this process", folder)
    return folder


def digest(source: str, includes: Sequence[Path], flags: Sequence[str], version: str) -> str:
    """Content key of a build: text, headers in the include folders, flags, compiler version."""
    whole = hashlib.sha256(_seal(b""))  # libraries of before are not looked at
    for part in (source, *flags, version):
        whole.update(part.encode())
        whole.update(b"\0")
    for folder in includes:
        for header in sorted(folder.rglob("*.h")):
            whole.update(header.name.encode())
            whole.update(header.read_bytes())
    return whole.hexdigest()[:32]


def build(source: str, *, includes: Sequence[Path] = (), flags: Sequence[str] = (), name: str = "unit") -> Path:
    """Compile one C++ translation unit into a shared library and return its path.

    Raises ``BuildError`` when there is no compiler, it fails, or it runs over the time limit.
    """
    config = settings()
    tool = compiler(config)
    if tool is None:
        wanted = config.compiler or "g++"
        raise BuildError(f"no C++ compiler: '{wanted}' was not found; install g++ or set ADAFLEX_CXX to one")
    all_flags = (*BASE_FLAGS, *flags)
    folder = cache_folder("native", config)
    key = digest(source, includes, all_flags, tool.version)
    library = folder / f"{name}-{key}.so"
    if is_whole(library):
        return library
    with FileLock(str(folder / f"{key}.lock"), timeout=config.build_timeout_s + 30):
        if not is_whole(library):
            _compile(tool, source, includes, all_flags, library, config.build_timeout_s)
    return library


def is_whole(library: Path) -> bool:
    """Is there a library under this name, and is it what was built?"""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    if content[-SEAL:] == _seal(content[:-SEAL]):
        return True
    log.warning("%s is damaged and built again", library)
    return False


def _seal(content: bytes) -> bytes:
    return b"adaflex:" + hashlib.sha256(content).digest()


def _compile(
    tool: Compiler, source: str, includes: Sequence[Path], flags: Sequence[str], library: Path, limit_s: float
) -> None:
    text = library.with_suffix(".cpp")
    text.write_text(source)
    for left in library.parent.glob(f"{library.stem}.*.partial"):  # of a build that was killed: we hold the lock
        left.unlink(missing_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.partial")
    command = [tool.path, *flags, *(f"-I{folder}" for folder in includes), str(text), "-o", str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as fault:
        partial.unlink(missing_ok=True)
        raise BuildError(
            f"{tool.path} ran over {limit_s:g} s on {text}; raise ADAFLEX_BUILD_TIMEOUT or look at that source"
        ) from fault
    except OSError as fault:
        raise BuildError(f"{tool.path} could not be started on {text}: {fault}") from fault
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BuildError(f"{tool.path} failed on {text}: {errors[0]}")
    content = partial.read_bytes()
    with partial.open("ab") as file:  # what follows the last section of a library is read by nobody
        file.write(_seal(content))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(library)
    log.debug("built %s", library)


def keep(library: bytes) -> Path:
    """A trusted library's bytes as a file of the cache."""
    path = cache_folder("native") / f"kept-{hashlib.sha256(library).hexdigest()[:32]}.so"
    if not path.exists() or path.read_bytes() != library:
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(library)
        partial.replace(path)
    return path


def load(library: Path) -> ctypes.CDLL:
    """Load a built library; calls through it release the interpreter lock."""
    try:
        return ctypes.CDLL(str(library))
    except OSError as fault:
        raise BuildError(f"{library} could not be loaded ({fault}); delete it and try again") from fault


def load_core(files: Sequence[Path], *, name: str, otherwise: str) -> ctypes.CDLL | None:
    """The library of C++ files that are compiled as one; None where it cannot be built, and ``otherwise`` is said."""
    try:
        return load(build("".join(file.read_text() for file in files), name=name))
    except BuildError as fault:
        log.warning("%s: %s", otherwise, fault)
        return None


def pointer(array: Any) -> ctypes.c_void_p:
    """Where a numpy array's values lie, for a library's call."""
    return ctypes.c_void_p(array.ctypes.data)

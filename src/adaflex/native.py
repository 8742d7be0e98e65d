"""Builds C++ into a shared library, once per content.

In: C++ text, include folders, flags. Out: the path of a ``.so`` in the cache, or a ``BuildError``.
The key is a digest of the text, every header beside it, the flags and the compiler's version, so a changed
header or compiler never meets a stale library. The library appears under its name by rename: never half-written; its
own digest follows its last byte, and a library that does not match it any more is built again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
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


SEAL = 40  # bytes of the mark and SHA-256 that follow what was built
OLD_S = 14 * 86400.0
FEW = 2  # units of a kind that a process builds before what they have in common is built first


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answered ``--version``."""

    path: str
    version: str


@dataclass(frozen=True)
class Common:
    """What many units have in common, compiled once for all of them: their headers, and functions they only name.

    A part is two texts: what declares it in a unit, what defines it in one of its own.
    """

    headers: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]


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


def digest(includes: Sequence[Path], flags: Sequence[str], version: str) -> bytes:
    """Content key of what builds depend on beside their text: headers in the include folders, flags, compiler."""
    whole = hashlib.sha256(_seal(b""))  # libraries of before are not looked at
    for part in (*flags, version):
        whole.update(part.encode())
        whole.update(b"\0")
    for folder in includes:
        for header in sorted(folder.rglob("*.h")):
            whole.update(header.name.encode())
            whole.update(header.read_bytes())
    return whole.digest()


def build(
    source: str,
    *,
    includes: Sequence[Path] = (),
    flags: Sequence[str] = (),
    name: str = "unit",
    common: Common | None = None,
) -> Path:
    """Compile one C++ translation unit into a shared library and return its path.

    ``common`` changes how long that takes, never what comes out. Raises ``BuildError`` when there is no compiler, it
    fails, or it runs over the time limit.
    """
    config = settings()
    tool = compiler(config)
    if tool is None:
        wanted = config.compiler or "g++"
        raise BuildError(f"no C++ compiler: '{wanted}' was not found; install g++ or set ADAFLEX_CXX to one")
    work = _Work(tool, tuple(includes), (*BASE_FLAGS, *flags), cache_folder("native", config), config.build_timeout_s)
    library = work.place(name, "so", source)
    if not is_whole(library):
        with work.lock(library):
            if not is_whole(library):
                work.library(library, source, common)
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


@dataclass(frozen=True)
class _Work:
    """How units are compiled, and where what comes out is put."""

    tool: Compiler
    includes: tuple[Path, ...]
    flags: tuple[str, ...]
    folder: Path
    limit_s: float

    @functools.cached_property
    def surroundings(self) -> bytes:
        """What the builds depend on beside their text, read once."""
        return digest(self.includes, self.flags, self.tool.version)

    def place(self, name: str, suffix: str, *text: str) -> Path:
        """The file under which the build of a text is known."""
        key = hashlib.sha256(self.surroundings + "\0".join(text).encode()).hexdigest()[:32]
        return self.folder / f"{name}-{key}.{suffix}"

    def lock(self, target: Path) -> FileLock:
        """One process builds, the others wait for it."""
        return FileLock(str(target.with_suffix(".lock")), timeout=self.limit_s + 30)

    def library(self, target: Path, source: str, common: Common | None) -> None:
        """Compile a unit, with what it has in common with others where that is built or worth building."""
        if common is not None and self._is_worthwhile(common):
            try:
                header, parts = self._ready(common)
                whole = "\n".join([*(declared for declared, _ in common.parts), source])
                self.compile(target, whole, ("-include", str(header)), parts)
            except (BuildError, OSError) as fault:
                log.debug("%s is compiled whole: %s", target, fault)
            else:
                return
        self.compile(target, source)

    def _is_worthwhile(self, common: Common) -> bool:
        """From the third unit of a process on, or where it lies there already; only GCC's headers work as these do."""
        if "clang" in self.tool.version:
            return False
        _built[self.flags] += 1
        return _built[self.flags] > FEW or self._header(common).with_suffix(".h.gch").exists()

    def _header(self, common: Common) -> Path:
        return self.place("common", "h", *common.headers)

    def _ready(self, common: Common) -> tuple[Path, list[Path]]:
        """The headers, precompiled, and the parts, each built where it is not there or damaged."""
        header = self._header(common)
        text = "#pragma once\n" + "".join(f'#include "{name}"\n' for name in common.headers)
        compiled = header.with_suffix(".h.gch")
        with self.lock(compiled):
            if not _was_whole(compiled):
                header.write_text(text)
                self.compile(compiled, text, ("-x", "c++-header"))
                self._forget_old()
        objects = []
        for _, defined in common.parts:
            part = self.place("part", "o", *common.headers, defined)
            with self.lock(part):
                if not _was_whole(part):
                    self.compile(part, defined, ("-include", str(header), "-c"))
            objects.append(part)
        return header, objects

    def _forget_old(self) -> None:
        """Precompiled headers of weeks ago, of another version as a rule, go: each takes 60 MB."""
        for path in self.folder.glob("common-*.gch"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > OLD_S:
                    path.unlink()

    def compile(self, target: Path, source: str, options: Sequence[str] = (), objects: Sequence[Path] = ()) -> None:
        """Compile a text under its name by rename, its seal behind it."""
        text = target.with_suffix(".cpp")
        text.write_text(source)
        for left in target.parent.glob(f"{target.stem}.*.partial"):  # of a build that was killed: we hold the lock
            left.unlink(missing_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        folders = [f"-I{folder}" for folder in self.includes]
        files = [str(text), *map(str, objects), "-o", str(partial)]
        command = [self.tool.path, *self.flags, *options, *folders, *files]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.limit_s, check=False)
        except subprocess.TimeoutExpired as fault:
            partial.unlink(missing_ok=True)
            raise BuildError(
                f"{self.tool.path} ran over {self.limit_s:g} s on {text}; raise ADAFLEX_BUILD_TIMEOUT or look at that "
                "source"
            ) from fault
        except OSError as fault:
            raise BuildError(f"{self.tool.path} could not be started on {text}: {fault}") from fault
        if done.returncode != 0:
            partial.unlink(missing_ok=True)
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
            raise BuildError(f"{self.tool.path} failed on {text}: {errors[0]}")
        content = partial.read_bytes()
        with partial.open("ab") as file:  # what follows the last section of a library is read by nobody
            file.write(_seal(content))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        log.debug("built %s", target)


_built: Counter[tuple[str, ...]] = Counter()


@functools.cache
def _once(path: Path, changed_ns: int, size: int) -> bool:
    return is_whole(path)


def _was_whole(path: Path) -> bool:
    """Whether it is what was built, looked at once: it may be 60 MB."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return _once(path, stat.st_mtime_ns, stat.st_size)


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

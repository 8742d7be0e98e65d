"""Artifacts: a program with its weights in one file, read without running anything of it.

In: a ``Program``, the bytes of its constants, a manifest (the plan, the machine it was measured on). Out: one file;
and from a file an ``Artifact``, its weights mapped, every byte of it accounted for by a digest.

Hashes prove integrity, not origin: built kernels inside a file are handed out only where the caller trusts the file.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaflex.errors import ArtifactError
from adaflex.runtime.artifact_check import KernelLibrary, check_program
from adaflex.runtime.artifact_file import (
    MOST_FILE,
    PREAMBLE,
    Piece,
    Preamble,
    page,
    read_preamble,
    replace_file,
    write_preamble,
)
from adaflex.runtime.artifact_json import dumps, loads
from adaflex.runtime.bounds import check_bounds
from adaflex.runtime.json_readers import integer, many, one_of, record, text
from adaflex.runtime.program import FORMAT_VERSION, STREAMED_VERSION, WITH_WINDOWS, Constant, Program, WindowStep
from adaflex.runtime.program_json import from_plain, to_plain
from adaflex.runtime.stream import REQUEST, Stream

Bytes = NDArray[np.uint8]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}(\.so)?")  # of a section: never a path


@dataclass(frozen=True)
class Section:
    """A run of bytes of the file."""

    name: str
    offset: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """What a file holds. ``weights`` is mapped read-only, uint8; nothing may write to it."""

    program: Program
    weights: Tensor
    manifest: Mapping[str, Any]
    native: Mapping[str, bytes]  # built kernels; empty unless trusted
    has_native: bool  # does the file hold built kernels, trusted or not?
    digest: str  # "sha256:<64 hex>": names this file's whole content, and is what ``trust`` takes
    stream: Stream | None = None  # the bytes of constants that are streamed, read from this same file


_SECTION = record(Section, {"name": text, "offset": integer(0), "size_bytes": integer(0), "sha256": text})
_HEADER_KEYS = {"format", "manifest", "native", "program", "weights"}


def version_of(program: Program) -> int:
    """The format that a program needs: the older one where it will do."""
    version = STREAMED_VERSION if program.blocks else FORMAT_VERSION
    return version + WITH_WINDOWS * any(isinstance(step, WindowStep) for step in program.steps)


def write(
    path: Path | str,
    program: Program,
    weights: Tensor,
    manifest: Mapping[str, Any],
    native: Mapping[str, bytes] | None = None,
    stream: Stream | None = None,
) -> str:
    """Write one file, replacing another only when the new one is whole and on disk; its digest.

    ``weights`` is uint8 with every constant at its offset. The same arguments give the same bytes.
    Raises ``ArtifactError`` where the manifest is no JSON or the system refuses.
    """
    data = weights.detach().numpy()
    program = _with_digests(program, data, stream)
    check_constants(program, data, stream, written=True)
    parts = dict(sorted((native or {}).items()))
    header, sections = _header(program, data, manifest, parts, stream)
    preamble = Preamble(version_of(program), len(header), _end(sections), hashlib.sha256(header).digest())
    replace_file(Path(path), _pieces(write_preamble(preamble), header, sections, (data, stream, parts)))
    return f"sha256:{preamble.digest.hex()}"


def _pieces(
    preamble: bytes,
    header: bytes,
    sections: list[Section],
    contents: tuple[Bytes, Stream | None, Mapping[str, bytes]],
) -> Iterator[Piece]:
    """The file's bytes in order; streamed ones are read as they are written."""
    data, stream, native = contents
    yield preamble
    yield header
    at = len(preamble) + len(header)
    for section in sections:
        yield b"\0" * (section.offset - at)
        if section.name == "weights":
            yield cast(Piece, data.data)
        elif section.name == "streamed" and stream is not None:
            for start in range(0, stream.size_bytes, REQUEST):
                yield cast(Piece, stream.load(start, min(REQUEST, stream.size_bytes - start)).data)
        else:
            yield native[section.name]
        at = section.offset + section.size_bytes


def _with_digests(program: Program, data: Bytes, stream: Stream | None) -> Program:
    """The program with the digest of every constant as its bytes are now."""
    constants = []
    for constant in program.constants:
        if constant.tier == "memory":
            content = data[constant.offset : constant.offset + constant.size_bytes]
        else:
            content = _streamed(stream, constant.offset, constant.size_bytes)
        constants.append(replace(constant, digest=hashlib.sha256(content.data).hexdigest()))
    return replace(program, constants=tuple(constants))


def _streamed(stream: Stream | None, at: int, size: int) -> Bytes:
    """Bytes of the streamed constants, which need not be whole pages."""
    if stream is None:
        raise ArtifactError("this program streams weights, and the file that holds them is not open; compile it again")
    return stream.load_part(at, size)


def _header(
    program: Program, data: Bytes, manifest: Mapping[str, Any], native: Mapping[str, bytes], stream: Stream | None
) -> tuple[bytes, list[Section]]:
    """The header padded to whole pages with the preamble, and the sections it describes.

    Offsets stand in the header and depend on its length: they are counted from its end.
    """
    sections, at = [Section("weights", 0, len(data), "")], page(len(data))
    if stream is not None:
        sections.append(Section("streamed", at, stream.size_bytes, ""))
        at = page(at + stream.size_bytes)
    for name, content in native.items():
        sections.append(Section(name, at, len(content), hashlib.sha256(content).hexdigest()))
        at = page(at + len(content))
    value = {
        "format": version_of(program),
        "manifest": dict(manifest),
        "program": to_plain(program),
        "weights": _plain(sections[0]),
        "native": [_plain(section) for section in sections if section.name in native],
    }
    if stream is not None:
        value["streamed"] = _plain(sections[1])
    raw = dumps(value, "the manifest")
    start = page(PREAMBLE.size + len(raw))
    raw = raw.ljust(start - PREAMBLE.size)
    return raw, [replace(section, offset=section.offset + start) for section in sections]


def _plain(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "offset": section.offset,
        "size_bytes": section.size_bytes,
        "sha256": section.sha256,
    }


def _end(sections: list[Section]) -> int:
    return sections[-1].offset + sections[-1].size_bytes


def read(path: Path | str, library: KernelLibrary, trust: str | bool | None = None) -> Artifact:
    """Read a file. Nothing of it is run; the file is opened once, and all that is returned comes from that opening.

    ``library``: the only kernels a program may name, and what they read. ``trust``: True, or the
    "sha256:..." of the very file, to be given the built kernels inside. Raises ``ArtifactError`` where anything is
    damaged, from another version, or not what AdaFlex writes; the order of checks is in docs/artifact.md.
    """
    path = Path(path)
    mapped, opened = _open(path)
    preamble = read_preamble(mapped[: PREAMBLE.size].tobytes(), path, len(mapped))
    start = PREAMBLE.size + preamble.header_bytes
    raw = mapped[PREAMBLE.size : start].tobytes()
    if hashlib.sha256(raw).digest() != preamble.digest:
        raise ArtifactError(f"the header of '{path}' does not match its SHA-256; the file is damaged: copy it again")
    if start != page(start):
        raise ArtifactError(f"the header of '{path}' does not fill whole pages; no AdaFlex wrote it")
    value = _object(loads(raw, f"the header of '{path}'"), path, preamble.version)
    program = from_plain(value["program"])
    if version_of(program) != preamble.version:
        raise ArtifactError(f"'{path}' says that it has format {preamble.version} and holds another; it is damaged")
    weights = _SECTION(value["weights"], "weights")
    streamed = [_SECTION(value["streamed"], "streamed")] if "streamed" in value else []
    native = many(_SECTION, 64)(value["native"], "native")
    _check_sections(start, len(mapped), [weights, *streamed, *native], path)
    content = mapped[start : start + weights.size_bytes]
    check_program(program, weights.size_bytes, library, sum(section.size_bytes for section in streamed))
    if all(hint > 0 for hint in program.hints) and len(program.hints) == len(program.symbols):
        check_bounds(program, dict(zip(program.symbols, program.hints, strict=True)))
    stream = opened.part(start + streamed[0].offset, streamed[0].size_bytes) if streamed else None
    check_constants(program, content, stream)
    _check_padding(mapped, start, [weights, *streamed, *native], path)
    digest = f"sha256:{preamble.digest.hex()}"
    parts = _native(mapped, start, native, path)
    parts = parts if _trusted(trust, digest, path) else {}
    return Artifact(program, _tensor(content), value["manifest"], parts, bool(native), digest, stream)


def _open(path: Path) -> tuple[Bytes, Stream]:
    """The file's bytes, mapped read-only, and the same opening of it to read from. Only a regular file is opened; a
    pipe would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as problem:
        raise ArtifactError(f"cannot open '{path}': {problem.strerror}; check the path") from None
    stream = Stream(descriptor, path, 0, 0)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"'{path}' is no regular file; give a file that .save() wrote")
    if not PREAMBLE.size <= status.st_size <= MOST_FILE:
        raise ArtifactError(f"'{path}' has {status.st_size} bytes and is no AdaFlex artifact; it may be cut short")
    return np.frombuffer(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), np.uint8), stream


def _object(value: Any, path: Path, version: int) -> dict[str, Any]:
    keys = _HEADER_KEYS | ({"streamed"} if version in (STREAMED_VERSION, STREAMED_VERSION + WITH_WINDOWS) else set())
    if type(value) is not dict or value.keys() != keys or type(value["manifest"]) is not dict:
        raise ArtifactError(f"the header of '{path}' does not have the entries {', '.join(sorted(keys))}")
    if type(value["format"]) is not int or value["format"] != version:
        raise ArtifactError(
            f"'{path}' holds a program of format {value['format']!r:.20}, its first bytes say {version}; "
            "install the version that wrote it, or save it again"
        )
    return value


def _check_sections(start: int, file_bytes: int, sections: list[Section], path: Path) -> None:
    """Sections follow each other on whole pages and end where the file ends."""
    one_of(("weights",))(sections[0].name, "weights.name")
    for section in sections:
        if section.name in ("weights", "streamed"):
            one_of(("",))(section.sha256, f"{section.name}.sha256")  # each constant has its own digest
    names = [section.name for section in sections]
    if len(set(names)) != len(names) or not all(NAME.fullmatch(name) for name in names):
        raise ArtifactError(f"the sections of '{path}' have names that no AdaFlex gives")
    at = 0
    for section in sections:
        if section.offset != page(at):
            raise ArtifactError(
                f"section '{section.name:.40}' of '{path}' is not where it must be; the file is damaged"
            )
        at = section.offset + section.size_bytes
    if start + at != file_bytes:
        raise ArtifactError(f"the sections of '{path}' end at byte {start + at} of {file_bytes}; the file is damaged")


def check_constants(program: Program, content: Bytes, stream: Stream | None = None, written: bool = False) -> None:
    """Every constant's bytes match its digest, and what lies between them is zero, in memory and on disk."""
    ordered = sorted(enumerate(program.constants), key=lambda item: item[1].offset)
    _check_run([item for item in ordered if item[1].tier == "memory"], content, 0, written)
    for block in program.blocks:
        if block.size_bytes:
            start, end = block.offset, page(block.offset + block.size_bytes)
            inside = [item for item in ordered if item[1].tier == "disk" and start <= item[1].offset < end]
            _check_run(inside, _streamed(stream, start, end - start), start, written)


def _check_run(constants: list[tuple[int, Constant]], content: Bytes, base: int, written: bool) -> None:
    at = 0
    for number, constant in constants:
        start, end = constant.offset - base, constant.offset - base + constant.size_bytes
        if content[at:start].any():
            raise ArtifactError(f"bytes before constant {number} are not zero; the weights are damaged")
        at = end
        if not written and hashlib.sha256(content[start:end].data).hexdigest() != constant.digest:
            raise ArtifactError(
                f"constant {number} ('{constant.name:.80}') does not match its SHA-256; the file is damaged"
            )
    if content[at:].any():
        raise ArtifactError("bytes after the last constant are not zero; the weights are damaged")


def _check_padding(mapped: Bytes, start: int, sections: list[Section], path: Path) -> None:
    at = start
    for section in sections:
        if mapped[at : start + section.offset].any():
            raise ArtifactError(f"bytes between the sections of '{path}' are not zero; the file is damaged")
        at = start + section.offset + section.size_bytes


def _trusted(trust: str | bool | None, digest: str, path: Path) -> bool:
    if trust is None or isinstance(trust, bool):
        return bool(trust)
    if trust != digest:
        raise ArtifactError(f"'{path}' is {digest}, not {trust}; it is not the file you trust")
    return True


def _native(mapped: Bytes, start: int, sections: Collection[Section], path: Path) -> dict[str, bytes]:
    parts = {}
    for section in sections:
        content = mapped[start + section.offset : start + section.offset + section.size_bytes].tobytes()
        if hashlib.sha256(content).hexdigest() != section.sha256:
            raise ArtifactError(
                f"the kernels '{section.name:.40}' in '{path}' do not match their SHA-256; save it again"
            )
        parts[section.name] = content
    return parts


def _tensor(content: Bytes) -> Tensor:
    """A tensor over mapped bytes, not copied. torch warns of buffers it may not write, so it is given the address."""
    if not len(content):
        return torch.empty(0, dtype=torch.uint8)
    block = (ctypes.c_ubyte * len(content)).from_address(content.ctypes.data)
    block.owner = content  # type: ignore[attr-defined]  # the mapping lives as long as the tensor
    return torch.frombuffer(block, dtype=torch.uint8)

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
from collections.abc import Collection, Mapping
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
    VERSION,
    Piece,
    Preamble,
    page,
    read_preamble,
    replace_file,
    write_preamble,
)
from adaflex.runtime.artifact_json import dumps, loads
from adaflex.runtime.bounds import check_bounds
from adaflex.runtime.program import FORMAT_VERSION, Program
from adaflex.runtime.program_json import from_plain, integer, many, one_of, record, text, to_plain

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


_SECTION = record(Section, {"name": text, "offset": integer(0), "size_bytes": integer(0), "sha256": text})
_HEADER_KEYS = {"format", "manifest", "native", "program", "weights"}


def write(
    path: Path | str,
    program: Program,
    weights: Tensor,
    manifest: Mapping[str, Any],
    native: Mapping[str, bytes] | None = None,
) -> str:
    """Write one file, replacing another only when the new one is whole and on disk; its digest.

    ``weights`` is uint8 with every constant at its offset. The same arguments give the same bytes.
    Raises ``ArtifactError`` where the manifest is no JSON or the system refuses.
    """
    data = weights.detach().numpy()
    program = _with_digests(program, data)
    check_constants(program, data, written=True)
    parts = dict(sorted((native or {}).items()))
    header, sections = _header(program, data, manifest, parts)
    preamble = Preamble(VERSION, len(header), _end(sections), hashlib.sha256(header).digest())
    pieces: list[Piece] = [write_preamble(preamble), header]
    at = PREAMBLE.size + len(header)
    for section, content in zip(sections, [cast(Piece, data.data), *parts.values()], strict=True):
        pieces += [b"\0" * (section.offset - at), content]
        at = section.offset + section.size_bytes
    replace_file(Path(path), pieces)
    return f"sha256:{preamble.digest.hex()}"


def _with_digests(program: Program, data: Bytes) -> Program:
    """The program with the digest of every constant as its bytes are now."""
    constants = []
    for constant in program.constants:
        content = data[constant.offset : constant.offset + constant.size_bytes]
        constants.append(replace(constant, digest=hashlib.sha256(content.data).hexdigest()))
    return replace(program, constants=tuple(constants))


def _header(
    program: Program, data: Bytes, manifest: Mapping[str, Any], native: Mapping[str, bytes]
) -> tuple[bytes, list[Section]]:
    """The header padded to whole pages with the preamble, and the sections it describes.

    Offsets stand in the header and depend on its length: they are counted from its end.
    """
    sections, at = [Section("weights", 0, len(data), "")], page(len(data))
    for name, content in native.items():
        sections.append(Section(name, at, len(content), hashlib.sha256(content).hexdigest()))
        at = page(at + len(content))
    value = {
        "format": FORMAT_VERSION,
        "manifest": dict(manifest),
        "program": to_plain(program),
        "weights": _plain(sections[0]),
        "native": [_plain(section) for section in sections[1:]],
    }
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
    mapped = _map(path)
    preamble = read_preamble(mapped[: PREAMBLE.size].tobytes(), path, len(mapped))
    start = PREAMBLE.size + preamble.header_bytes
    raw = mapped[PREAMBLE.size : start].tobytes()
    if hashlib.sha256(raw).digest() != preamble.digest:
        raise ArtifactError(f"the header of '{path}' does not match its SHA-256; the file is damaged: copy it again")
    if start != page(start):
        raise ArtifactError(f"the header of '{path}' does not fill whole pages; no AdaFlex wrote it")
    value = _object(loads(raw, f"the header of '{path}'"), path)
    program = from_plain(value["program"])
    weights = _SECTION(value["weights"], "weights")
    native = many(_SECTION, 64)(value["native"], "native")
    _check_sections(start, len(mapped), [weights, *native], path)
    content = mapped[start : start + weights.size_bytes]
    check_program(program, weights.size_bytes, library)
    if all(hint > 0 for hint in program.hints) and len(program.hints) == len(program.symbols):
        check_bounds(program, dict(zip(program.symbols, program.hints, strict=True)))
    check_constants(program, content)
    _check_padding(mapped, start, [weights, *native], path)
    digest = f"sha256:{preamble.digest.hex()}"
    parts = _native(mapped, start, native, path)
    parts = parts if _trusted(trust, digest, path) else {}
    return Artifact(program, _tensor(content), value["manifest"], parts, bool(native), digest)


def _map(path: Path) -> Bytes:
    """The file's bytes, mapped read-only. Only a regular file is opened; a pipe would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as problem:
        raise ArtifactError(f"cannot open '{path}': {problem.strerror}; check the path") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"'{path}' is no regular file; give a file that .save() wrote")
        if not PREAMBLE.size <= status.st_size <= MOST_FILE:
            raise ArtifactError(f"'{path}' has {status.st_size} bytes and is no AdaFlex artifact; it may be cut short")
        return np.frombuffer(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)


def _object(value: Any, path: Path) -> dict[str, Any]:
    if type(value) is not dict or value.keys() != _HEADER_KEYS or type(value["manifest"]) is not dict:
        raise ArtifactError(f"the header of '{path}' does not have the entries {', '.join(sorted(_HEADER_KEYS))}")
    if type(value["format"]) is not int or value["format"] != FORMAT_VERSION:
        raise ArtifactError(
            f"'{path}' holds a program of format {value['format']!r:.20}, this AdaFlex runs format {FORMAT_VERSION}; "
            "install the version that wrote it, or save it again"
        )
    return value


def _check_sections(start: int, file_bytes: int, sections: list[Section], path: Path) -> None:
    """Sections follow each other on whole pages and end where the file ends."""
    one_of(("weights",))(sections[0].name, "weights.name")
    one_of(("",))(sections[0].sha256, "weights.sha256")  # each constant has its own digest
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


def check_constants(program: Program, content: Bytes, written: bool = False) -> None:
    """Every constant's bytes match its digest, and what lies between them is zero."""
    at = 0
    for number, constant in sorted(enumerate(program.constants), key=lambda item: item[1].offset):
        end = constant.offset + constant.size_bytes
        if content[at : constant.offset].any():
            raise ArtifactError(f"bytes before constant {number} are not zero; the weights are damaged")
        at = end
        if not written and hashlib.sha256(content[constant.offset : end].data).hexdigest() != constant.digest:
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

"""Hostile artifacts with weights that are streamed through a ring: each is refused with a sentence that names why."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaflex.assembly import Assembled, assemble, blocks_of
from adaflex.codegen.kernels.family import kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.errors import ArtifactError
from adaflex.handle import kernel_library
from adaflex.passes.decision import Decision
from adaflex.passes.export_door import from_export
from adaflex.passes.menu import Encoded, Machine
from adaflex.passes.sites import find_sites
from adaflex.runtime import artifact, artifact_file
from adaflex.runtime.stream import PAGE
from adaflex.solver.table import Encoding
from tests.runtime import sample

WIDE, DEEP = 48, 4


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDE), nn.Linear(WIDE, 2 * WIDE), nn.Linear(2 * WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def assembled() -> Assembled:
    """Four layers, all their weights streamed in blocks of a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer() for _ in range(DEEP))).eval().requires_grad_(False)
    capture, weights = from_export(model, (torch.randn(4, WIDE),))
    sites = find_sites(capture, tuple(weights), MENU, Machine("avx512", 1))

    def provide(site: str, encoding: Encoding) -> Encoded:
        return kernel(MENU, encoding.family).encode(sites.weight(tuple(weights), site), encoding, None)

    tiers = {site: "disk" for block in blocks_of(capture, sites) for site in block}
    return assemble(capture, tuple(weights), sites, Decision(dict(sites.keep), (), tiers), provide)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("streamed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAFLEX_CACHE_DIR", str(folder / "cache"))
        made = assembled()
        artifact.write(folder / "whole.afx", made.program, made.weights, {}, None, made.stream)
    return (folder / "whole.afx").read_bytes()


def blocks(header: Any) -> list[Any]:
    """The blocks of prefetch, those without bytes left out."""
    return [block for block in header["program"]["blocks"] if block.get("size_bytes")]


def streamed(header: Any) -> list[Any]:
    return [constant for constant in header["program"]["constants"] if constant.get("tier") == "disk"]


def resident(header: Any) -> list[Any]:
    return [constant for constant in header["program"]["constants"] if constant.get("tier", "memory") == "memory"]


def put(found: Callable[[Any], Any], **values: Any) -> Callable[[Any], None]:
    """Overwrites entries of what ``found`` gives."""
    return lambda header: found(header).update(values)


def overlapping_constants(header: Any) -> None:
    """The second constant of a block where the first one lies, with the digest of the bytes that are there."""
    first, second = streamed(header)[:2]
    second.update(offset=first["offset"], digest=first["digest"], size_bytes=first["size_bytes"])


def swapped_blocks(header: Any) -> None:
    one, other = blocks(header)[:2]
    one["offset"], other["offset"] = other["offset"], one.get("offset", 0)


def shifted(header: Any) -> None:
    """Every block a page later: the last one ends behind the section."""
    for block in blocks(header):
        block["offset"] = block.get("offset", 0) + PAGE


def whole_ring_at_once(header: Any) -> None:
    """The third block is wanted while the first is still used: three blocks in a ring of two."""
    found = blocks(header)
    found[2]["first"] = found[0]["last"]


def read_as_a_table(header: Any) -> None:
    """A norm's weight, which a row step reads, said to be streamed from behind the first block's own constants."""
    block, plain = blocks(header)[0], resident(header)[0]
    digest = hashlib.sha256(bytes(plain["size_bytes"])).hexdigest()
    plain.update(tier="disk", offset=block["size_bytes"], digest=digest)
    block["size_bytes"] += 1024


def over_the_edge(header: Any) -> None:
    """The last constant of the first block ends behind it."""
    streamed(header)[1]["offset"] += 64


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "section beyond the file": (put(lambda h: h["streamed"], offset=1 << 40), "is not where it must be"),
    "section over the weights": (put(lambda h: h["streamed"], offset=0), "is not where it must be"),
    "section of a negative size": (put(lambda h: h["streamed"], size_bytes=-PAGE), "streamed.size_bytes"),
    "section longer than the file": (put(lambda h: h["streamed"], size_bytes=1 << 30), "end at byte"),
    "section with a digest of its own": (put(lambda h: h["streamed"], sha256="0" * 64), "streamed.sha256"),
    "block beyond the section": (put(lambda h: blocks(h)[-1], offset=1 << 30), "begins at byte"),
    "block of a negative size": (put(lambda h: blocks(h)[0], size_bytes=-64), "size_bytes"),
    "block at a negative offset": (put(lambda h: blocks(h)[0], offset=-PAGE), "offset"),
    "block off the page": (put(lambda h: blocks(h)[1], offset=PAGE + 64), "begins at byte"),
    "block as large as memory": (put(lambda h: blocks(h)[0], size_bytes=1 << 44), "begins at byte"),
    "blocks that overlap": (put(lambda h: blocks(h)[1], offset=0), "begins at byte"),
    "blocks in turns": (swapped_blocks, "begins at byte|lies in no block"),
    "blocks moved on": (shifted, "begins at byte"),
    "block that ends before it begins": (put(lambda h: blocks(h)[1], first=3, last=1), "out of order"),
    "block used after the program": (put(lambda h: blocks(h)[-1], last=1 << 20), "out of order"),
    "block wanted before there is room": (whole_ring_at_once, "before there is room|outside of the entries"),
    "constant with another digest": (put(lambda h: streamed(h)[1], digest="0" * 64), "SHA-256"),
    "constant over another": (overlapping_constants, "overlaps another"),
    "constant that crosses its block": (over_the_edge, "lies in no block"),
    "constant longer than the section": (put(lambda h: streamed(h)[0], size_bytes=1 << 30), "ends at byte"),
    "constant at a negative offset": (put(lambda h: streamed(h)[0], offset=-64), "offset"),
    "constant off its alignment": (put(lambda h: streamed(h)[0], offset=4), "aligned"),
    "constant on a tier that is none": (put(lambda h: streamed(h)[0], tier="tape"), "tier"),
    "constant said to be resident": (put(lambda h: streamed(h)[1], tier="memory"), "overlaps|outside|constant"),
    "constant that no product reads": (read_as_a_table, "otherwise than as the weight"),
}


def written(raw: bytes, path: Path, header: Any) -> Path:
    path.write_bytes(sample.signed(raw, json.dumps(header).encode(), version=artifact_file.STREAMING))
    return path


def test_it_is_read_as_it_was_written(raw: bytes, tmp_path: Path) -> None:
    found = artifact.read(written(raw, tmp_path / "same.afx", sample.header(raw)), kernel_library())
    assert found.stream is not None and len(blocks(sample.header(raw))) == DEEP
    assert {c.tier for c in found.program.constants} == {"memory", "disk"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_ring_is_refused_by_name(name: str, raw: bytes, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    header = copy.deepcopy(sample.header(raw))
    change(header)
    assert header != sample.header(raw), "nothing was changed"
    with pytest.raises(ArtifactError, match=message):
        artifact.read(written(raw, tmp_path / "bad.afx", header), kernel_library())


def test_bytes_between_the_blocks_are_zero_and_others_are_digested(raw: bytes, tmp_path: Path) -> None:
    header = sample.header(raw)
    start = 64 + artifact_file.PREAMBLE.unpack(raw[:64])[3] + header["streamed"]["offset"]
    first, constant = blocks(header)[0], streamed(header)[0]
    assert first["size_bytes"] % PAGE, "the first block leaves a gap"
    for place, message in (
        (start + first.get("offset", 0) + first["size_bytes"], "are not zero"),
        (start + constant.get("offset", 0) + constant["size_bytes"] - 1, "SHA-256"),
    ):
        bad = bytearray(raw)
        bad[place] ^= 1
        path = tmp_path / "bytes.afx"
        path.write_bytes(bytes(bad))
        with pytest.raises(ArtifactError, match=message):
            artifact.read(path, kernel_library())


def test_digests_of_an_honest_file_are_those_of_its_bytes(raw: bytes) -> None:
    """What the other tests forge is right to begin with, counted without AdaFlex's reader."""
    header = sample.header(raw)
    start = 64 + artifact_file.PREAMBLE.unpack(raw[:64])[3] + header["streamed"]["offset"]
    for constant in streamed(header):
        at = start + constant.get("offset", 0)
        assert hashlib.sha256(raw[at : at + constant["size_bytes"]]).hexdigest() == constant["digest"]

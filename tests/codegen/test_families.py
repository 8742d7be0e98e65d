"""Every family: exact and reversible storage, the oracle's reading of its bytes, the reference against the oracle."""

import dataclasses

import numpy as np
import pytest
import torch

from adaflex.codegen.hadamard import hadamard, rotate, rotate_gram
from adaflex.codegen.kernels.call import padded
from adaflex.codegen.kernels.family import Kernel, kernel
from adaflex.codegen.kernels.menu import MENU
from adaflex.passes.menu import Machine
from adaflex.solver.table import Encoding, Site
from tests.codegen import oracle

MACHINE = Machine("avx512", 2)
SHAPES = ((40, 192), (64, 128), (7, 96), (33, 50))


def cases(op: str) -> list[tuple[Kernel, tuple[int, int], Encoding]]:
    made = []
    for entry in MENU:
        for shape in SHAPES:
            site = Site("w", op, shape[0] * shape[1], shape[0] * shape[1] * 4, shape=shape)
            made += [(entry, shape, each) for each in entry.offers(site, MACHINE) if op in entry.ops]
    return made


def name_of(case: object) -> str:
    return case.label() if isinstance(case, Encoding) else getattr(case, "name", str(case))


def outlying(*shape: int) -> torch.Tensor:
    """Normal values with a few heavy columns, as trained layers have."""
    made = torch.randn(*shape)
    made[:, :: max(1, shape[1] // 5)] *= 6
    return made


def gram_of(columns: int) -> torch.Tensor:
    rows = outlying(4 * columns, columns) @ (torch.eye(columns) + 0.2 * torch.randn(columns, columns))
    return rows.T @ rows


@pytest.mark.parametrize(("entry", "shape", "encoding"), cases("linear") + cases("embedding"), ids=name_of)
def test_stored_exactly(entry: Kernel, shape: tuple[int, int], encoding: Encoding) -> None:
    torch.manual_seed(0)
    for gram in (None, gram_of(shape[1])) if encoding.rounding == "compensated" else (None,):
        encoded = entry.encode(outlying(*shape), encoding, gram)
        assert encoded.encoding.rounding == ("nearest" if gram is None else "compensated")
        block = entry.pack(encoded)
        assert block.dtype is torch.uint8 and len(block) == entry.size_bytes(shape, encoding)
        assert len(block) == padded(len(block)), "blocks follow each other aligned"
        back = entry.unpack(block, shape, encoded.encoding)
        assert back.encoding == encoded.encoding and back.parts.keys() == encoded.parts.keys()
        for part, stored in encoded.parts.items():
            assert torch.equal(back.parts[part], stored) and back.parts[part].dtype is stored.dtype
        dense = entry.decode(encoded)
        assert torch.equal(entry.decode(back), dense)
        known = oracle.weight(block.numpy(), shape, encoding)
        assert np.abs(known - dense.double().numpy()).max() <= 1e-6 * np.abs(known).max()


@pytest.mark.parametrize(("entry", "shape", "encoding"), cases("linear"), ids=name_of)
def test_reference_is_what_the_bytes_say(entry: Kernel, shape: tuple[int, int], encoding: Encoding) -> None:
    torch.manual_seed(1)
    x, bias = outlying(9, shape[1]), torch.randn(shape[0])
    x[3] = 0.25  # a constant row has no range
    x[4] = 0
    encoded = entry.encode(outlying(*shape), encoding, None)
    found = entry.reference(x.reshape(3, 3, -1), encoded, bias)
    assert found.shape == (3, 3, shape[0]) and found.dtype is torch.float32
    block = entry.pack(encoded).numpy()
    known = oracle.linear(x.numpy(), block, shape, encoding, entry.form(encoding)) + bias.numpy()
    size = np.abs(x.numpy()) @ np.abs(oracle.weight(block, shape, encoding)).T
    difference = np.abs(found.reshape(9, -1).double().numpy() - known)
    rounded = 2e-6 if "u8" not in entry.form(encoding) else 2e-3  # one code may fall the other way at a tie
    assert (difference <= rounded * size + 1e-6).all()
    assert np.median(difference / (size + 1e-6)) < 1e-6
    assert entry.reference(x[:0], encoded, bias).shape == (0, shape[0])
    assert entry.reference(x.bfloat16(), encoded, bias).dtype is torch.bfloat16


@pytest.mark.parametrize(("entry", "shape", "encoding"), cases("linear"), ids=name_of)
def test_parts_are_where_the_call_says(entry: Kernel, shape: tuple[int, int], encoding: Encoding) -> None:
    call = entry.call(encoding, shape[1], shape[0])
    assert call.parts[0] == ("b", 0) and all(offset % 64 == 0 for _, offset in call.parts)
    assert entry.supports(shape, encoding) and call.header.endswith(".h")
    torch.manual_seed(2)
    encoded = entry.encode(outlying(*shape), encoding, None)
    block = entry.pack(encoded)
    if "sw" in dict(call.parts):
        at, rows, scale = dict(call.parts)["sw"], padded(shape[0], 32), encoded.parts["scale"]
        if encoding.group:
            pairs = block[at : at + 2 * rows * scale.shape[1]].view(torch.bfloat16).reshape(rows // 32, -1, 16, 2)
            held = torch.cat((pairs[..., 0], pairs[..., 1]), 2).transpose(1, 2).reshape(rows, -1).float()
        else:
            held = block[at : at + 4 * rows].view(torch.float32).unsqueeze(1)
        assert torch.equal(held[: shape[0]], scale) and not held[shape[0] :].any()
    if "csw" in dict(call.parts):
        at = dict(call.parts)["csw"]
        held = block[at : at + 4 * shape[0]].view(torch.float32)
        turned = torch.from_numpy(oracle.turn(entry.decode(encoded).double().numpy(), encoding.rotation))
        assert torch.allclose(held.double(), turned[:, : encoding.group or shape[1]].sum(1), atol=1e-4)


def test_repair_lowers_the_output_error_on_fresh_rows() -> None:
    torch.manual_seed(3)
    mixing = torch.eye(128) + 0.2 * torch.randn(128, 128)
    train, fresh = (torch.randn(rows, 128) @ mixing for rows in (4096, 512))
    weight = outlying(96, 128)
    for entry, encoding in {(e, dataclasses.replace(c)) for e, s, c in cases("linear") if s == (64, 128)}:
        if encoding.rounding == "compensated":
            plain, mended = (entry.decode(entry.encode(weight, encoding, g)) for g in (None, train.T @ train))
            error = [float((fresh @ (weight - each).T).norm()) for each in (plain, mended)]
            assert error[1] < 0.9 * error[0], encoding.label()


def test_searched_clipping_is_no_worse_than_the_full_range() -> None:
    from adaflex.codegen.kernels.quantise import fit_grid

    torch.manual_seed(4)
    weight = outlying(32, 128)
    for symmetric in (True, False):
        grid = fit_grid(weight, 4, 64, symmetric)
        error = float((grid.values(grid.codes(weight)) - weight).norm())
        steps = weight.abs().reshape(32, 2, 64).amax(-1) / 7 if symmetric else None
        if steps is not None:
            scale = steps.repeat_interleave(64, 1)
            assert error < float((torch.round(weight / scale).clamp(-8, 7) * scale - weight).norm())


@pytest.mark.parametrize(("entry", "shape", "encoding"), cases("linear"), ids=name_of)
def test_codes_are_those_of_the_scales_that_are_stored(
    entry: Kernel, shape: tuple[int, int], encoding: Encoding
) -> None:
    """Scales of groups are rounded before codes are chosen: each stored value is the nearest there is, or clipped."""
    if not encoding.group:
        return
    torch.manual_seed(5)
    weight = outlying(*shape)
    weight[0, : encoding.group] = 0
    weight[1] *= 1e-30
    encoded = entry.encode(weight, encoding, None)
    scale = encoded.parts["scale"]
    assert torch.equal(scale, scale.bfloat16().float()) and (scale > 0).all()
    turned = rotate(weight, encoding.rotation).reshape(shape[0], scale.shape[1], -1)
    codes = encoded.parts["codes"].float().reshape(turned.shape)
    zero = encoded.parts.get("zero", torch.full_like(scale, 8.0 if encoding.bits == 4 else 0.0)).float()
    off = (codes - zero.unsqueeze(-1) - turned / scale.unsqueeze(-1)).abs()
    inside = (codes > codes.amin()) & (codes < codes.amax())
    assert (off[inside] <= 0.501).all()
    assert off.mean() < 0.3


def test_hadamard() -> None:
    for block in (1, 2, 64, 128):
        matrix = hadamard(block)
        assert np.array_equal(matrix.double().numpy() > 0, oracle.hadamard(block) > 0)
        assert torch.allclose(matrix @ matrix, torch.eye(block), atol=1e-5)
    x = torch.randn(5, 256)
    assert torch.allclose(rotate(rotate(x, 128), 128), x, atol=1e-5) and rotate(x, 0) is x
    turned = rotate(x, 64)
    assert torch.allclose(rotate_gram(x.T @ x, 64), turned.T @ turned, atol=1e-3)
    with pytest.raises(ValueError, match="power of two, not 48"):
        hadamard(48)


def test_menu_names_are_unique_and_found() -> None:
    assert len({entry.name for entry in MENU}) == len(MENU)
    assert kernel(MENU, "bf16").name == "bf16"
    with pytest.raises(KeyError, match="'w99'"):
        kernel(MENU, "w99")


def test_unsupported_encodings_are_refused() -> None:
    w8a8 = kernel(MENU, "w8a8")
    assert not w8a8.supports((8, 96), Encoding("w8a8", 8, 64))
    assert not w8a8.supports((8, 96), Encoding("w8a8", 8, 0, True, 64))
    assert not w8a8.supports((8, 128), Encoding("w8a8", 8, 0, False))
    assert w8a8.supports((8, 128), Encoding("w8a8", 8, 32, True, 128))

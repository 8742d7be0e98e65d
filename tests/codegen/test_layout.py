"""Panels: exact inverses, the documented byte order, padding of zeros, refusals."""

import pytest
import torch

from adaflex.codegen import layout

SHAPES = [(1, 1), (7, 5), (32, 64), (33, 65), (96, 384), (100, 130)]


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_packing_is_reversible(n: int, k: int) -> None:
    torch.manual_seed(n * 1000 + k)
    weight = torch.randn(n, k)
    int8 = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    int4 = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    assert torch.equal(layout.unpack_f32(layout.pack_f32(weight), n, k), weight)
    assert torch.equal(layout.unpack_bf16(layout.pack_bf16(weight), n, k), weight.bfloat16())
    assert torch.equal(layout.unpack_int8(layout.pack_int8(int8), n, k), int8)
    assert torch.equal(layout.unpack_int4(layout.pack_int4(int4), n, k), int4)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_sizes_are_padded_and_padding_is_zero(n: int, k: int) -> None:
    panels = -(-n // 32)
    ones = torch.ones(n, k)
    packed = {
        layout.pack_f32(ones): (panels * 32 * k, n * k),
        layout.pack_bf16(ones): (panels * 32 * layout.round_up(k, 32), n * k),
        layout.pack_int8(ones.to(torch.int8)): (panels * 32 * layout.round_up(k, 64), n * k),
    }
    for tensor, (stored, used) in packed.items():
        assert tensor.is_contiguous() and tensor.numel() == stored
        assert tensor.float().sum() == used
    int4 = layout.pack_int4(ones.to(torch.uint8))
    assert int4.is_contiguous() and int4.numel() == panels * 16 * layout.round_up(k, 64)
    assert (int4 & 15).sum() + (int4 >> 4 ^ 8).sum() == n * k


def test_byte_order() -> None:
    n, k = 64, 128
    codes = (torch.arange(n * k) % 251 - 125).to(torch.int8).view(n, k)
    flat = layout.pack_int8(codes).flatten()
    nibbles = (torch.arange(n * k) * 7 % 16).to(torch.uint8).view(n, k)
    bytes_ = layout.pack_int4(nibbles).flatten()
    weight = torch.arange(n * k, dtype=torch.float32).view(n, k)
    floats, halves = layout.pack_f32(weight).flatten(), layout.pack_bf16(weight).flatten()
    for row, column in [(0, 0), (1, 5), (31, 127), (32, 0), (50, 77)]:
        panel, lane = divmod(row, 32)
        assert floats[(panel * k + column) * 32 + lane] == weight[row, column]
        assert halves[((panel * k // 2 + column // 2) * 32 + lane) * 2 + column % 2] == weight[row, column].bfloat16()
        assert flat[((panel * k // 4 + column // 4) * 32 + lane) * 4 + column % 4] == codes[row, column]
        byte = bytes_[((panel * k // 8 + column // 8) * 32 + lane) * 4 + column % 4]
        assert ((byte >> 4) + 8 & 15 if column % 8 >= 4 else byte & 15) == nibbles[row, column]


def test_columns_and_sums() -> None:
    torch.manual_seed(0)
    n, k = 40, 128
    codes, scale = torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n) + 0.5
    sums = layout.column_sums(codes, scale)
    assert sums.shape == (64,) and sums[n:].eq(0).all()
    torch.testing.assert_close(sums[:n], codes.double().sum(1).float() * scale)
    assert torch.equal(layout.pack_columns(scale)[:n], scale) and not layout.pack_columns(scale)[n:].any()


@pytest.mark.parametrize(("n", "group"), [(1, 128), (40, 32), (64, 64), (100, 128)])
def test_tables_of_groups(n: int, group: int) -> None:
    torch.manual_seed(n)
    groups = 3
    codes = torch.randint(0, 16, (n, groups * group), dtype=torch.uint8)
    zero = torch.randint(0, 16, (n, groups), dtype=torch.uint8)
    codes[0], zero[0], codes[-1], zero[-1] = 15, 0, 0, 15  # the largest sums there are
    scale = (torch.rand(n, groups) + 0.5).bfloat16().float()
    signed = codes.to(torch.int8) * 17 - 127
    tables = layout.pack_scales(scale), layout.int4_sums(codes, zero), layout.int8_sums(signed, groups)
    zeros = layout.pack_zeros(zero)
    for table in tables:
        assert table.shape == (-(-n // 32), groups, 16, 2) and table.is_contiguous() and table.element_size() == 2
        assert not layout.unpack_table(table, len(table) * 32)[n:].ne(0).any()
    assert torch.equal(layout.unpack_table(tables[0], n).float(), scale)
    assert torch.equal(layout.unpack_zero_points(tables[1], n), zero)
    assert torch.equal(layout.unpack_zeros(zeros, n), zero) and zeros.is_contiguous()
    centred = codes.long().view(n, groups, -1) - zero.long().unsqueeze(2)
    assert torch.equal(layout.unpack_table(tables[1], n).long() >> 4, centred.sum(2))
    assert torch.equal(layout.unpack_table(tables[2], n).long(), signed.long().view(n, groups, -1).sum(2))
    for row, at in [(0, 0), (n - 1, groups - 1), (n // 2, 1)]:
        panel, column = divmod(row, 32)
        place = (panel * groups + at) * 16 + column % 16
        assert tables[0].flatten()[place * 2 + column // 16] == scale[row, at]
        assert (zeros.flatten()[place] >> (4 if column >= 16 else 0)) & 15 == zero[row, at]


def test_scales_that_would_be_rounded_again_are_refused() -> None:
    with pytest.raises(ValueError, match="must be bfloat16 numbers"):
        layout.pack_scales(torch.tensor([[1.0, 1.001]]))


@pytest.mark.parametrize("codes", [torch.zeros(3, 4, dtype=torch.int32), torch.zeros(4, dtype=torch.int8)])
def test_wrong_codes_are_refused(codes: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"codes must be torch\.int8 \[N, K\]"):
        layout.pack_int8(codes)

"""Error-compensated rounding: each column's rounding error is made up for by the columns still to be rounded.

In: a weight [N, K] fp32 and the gram matrix of its calibration inputs [K, K]. Out: codes and grid of the weight that
loses least of ``trace((W - Q) G (W - Q)ᵀ)`` column by column.
Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaflex.codegen.kernels.quantise import Grid, fit_grid

DAMPING = 0.01  # share of the mean diagonal added to the gram matrix
BLOCK = 128  # columns rounded before the rest is updated at once; a multiple of every group


def compensated(weight: Tensor, gram: Tensor, bits: int, group: int = 0, symmetric: bool = True) -> tuple[Tensor, Grid]:
    """Codes (fp32 whole numbers [N, K]) and grid of ``weight``; ``gram`` is sum x xᵀ over calibration rows.

    Columns are rounded in order of falling importance where there is one scale per row (groups keep their order).
    Columns that calibration never excited are rounded to nearest.
    """
    importance = gram.diagonal().clamp(min=0)
    order = torch.arange(weight.shape[1]) if group else importance.argsort(descending=True, stable=True)
    factor = inverse_factor(gram[order][:, order])
    if factor is None:
        grid = fit_grid(weight, bits, group, symmetric, importance)
        return grid.codes(weight), grid
    remaining = weight[:, order].T.contiguous()  # [K, N]: a column is a contiguous row
    if not group:
        grid = fit_grid(weight, bits, 0, symmetric, importance)
        codes = torch.empty_like(weight)
        codes[:, order] = _round_all(remaining, factor, grid).T
        return codes, grid
    return _round_groups(remaining, factor, (bits, group, symmetric), importance)


def inverse_factor(gram: Tensor) -> Tensor | None:
    """Upper Cholesky factor [K, K] fp32 of the damped gram matrix's inverse; None where there is nothing to go by."""
    mean = float(gram.diagonal().mean())
    if not mean > 0:
        return None
    damped = gram.double() + torch.eye(len(gram), dtype=torch.float64) * (DAMPING * mean)
    # Cholesky from the last column backwards: G = R Rᵀ with R upper, so that R⁻¹ is the factor of G⁻¹ = R⁻ᵀ R⁻¹.
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    factor: Tensor = torch.linalg.solve_triangular(upper, torch.eye(len(gram), dtype=torch.float64), upper=True)
    return factor.float()


def _round_all(remaining: Tensor, factor: Tensor, grid: Grid) -> Tensor:
    """Round every row of ``remaining`` [K, N] on one grid, spreading errors; returns codes [K, N]."""
    codes = torch.empty_like(remaining)
    for first in range(0, len(remaining), BLOCK):
        last = min(first + BLOCK, len(remaining))
        codes[first:last] = _round_block(remaining, factor, first, last, grid, 0)
    return codes


def _round_groups(
    remaining: Tensor, factor: Tensor, form: tuple[int, int, bool], importance: Tensor
) -> tuple[Tensor, Grid]:
    """As ``_round_all``, with each group's grid fitted to what the group holds when its turn comes."""
    bits, group, symmetric = form
    codes = torch.empty_like(remaining)
    grids = []
    for first in range(0, len(remaining), group):
        last = first + group
        grids.append(fit_grid(remaining[first:last].T, bits, group, symmetric, importance[first:last]))
        codes[first:last] = _round_block(remaining, factor, first, last, grids[-1], 0)
    scale, zero = torch.cat([grid.scale for grid in grids], 1), torch.cat([grid.zero for grid in grids], 1)
    return codes.T.contiguous(), Grid(scale, zero, grids[0].low, grids[0].high)


def _round_block(remaining: Tensor, factor: Tensor, first: int, last: int, grid: Grid, group: int) -> Tensor:
    """Round rows [first, last) of ``remaining`` in turn, then update all rows below at once."""
    block = remaining[first:last]
    local = factor[first:last, first:last]
    diagonal = local.diagonal().tolist()
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    scale, zero = grid.scale[:, group], grid.zero[:, group]
    for index, step in enumerate(diagonal):
        column = block[index]
        code = torch.div(column, scale).add_(zero).round_().clamp_(grid.low, grid.high)
        codes[index] = code
        error = (column - code.sub(zero).mul_(scale)).div_(step)
        errors[index] = error
        if index + 1 < len(diagonal):
            block[index + 1 :].addr_(local[index, index + 1 :], error, alpha=-1)
    if last < len(remaining):
        remaining[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return codes

"""How far changed outputs are from the original's: the additive losses that plans are made of.

In: a Capture, calls, the original outputs. Out: ``Judge``, which turns the outputs of all calls into one number.
Squared relative output error: mean over samples of |y - y0|^2 / |y0|^2. KL: mean over positions of KL(p0 || p) in nats.
A user's function: its increase over the original. All are cut at 0; padding does not count where a mask is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from adaflex.errors import CalibrationError, OptionError
from adaflex.passes.calibration import Batch, Inputs, Samples
from adaflex.passes.capture import Capture

Loss: TypeAlias = "Literal['error', 'kl'] | Callable[[Any, Any], float]"
Outputs: TypeAlias = Sequence[Any]
KINDS = {"error": "squared relative error", "kl": "KL divergence"}


class Judge:
    """Compares outputs with the original's over one fixed set of calls.

    ``originals`` computes the original outputs when they are first needed: never, where all losses are known already.
    """

    def __init__(
        self,
        capture: Capture,
        samples: Samples,
        calls: Sequence[Inputs],
        loss: Loss,
        originals: Callable[[], Sequence[Outputs]] | None = None,
    ) -> None:
        if not callable(loss) and loss not in KINDS:
            raise OptionError(f"loss_fn is '{loss}'; give 'error', 'kl' or a function of (output, batch)")
        self.capture, self.samples, self.calls, self.loss = capture, samples, calls, loss
        self.kind = "increase of the given loss" if callable(loss) else KINDS[loss]
        fit = len(samples.fit)
        self.batches: Sequence[Batch] = samples.batches[fit:] if calls is samples.held else samples.batches[:fit]
        self.compared = [
            index
            for index, each in enumerate(capture.outputs)
            if each.kind not in ("mutation", "value", "constant", "input") and each.dtype is not None
        ]  # fmt: skip
        numbers = [index for index in self.compared if not _is_exact(capture.outputs[index].dtype)]
        self.compared = numbers or self.compared  # a model that returns indices alone is held to those
        self.later = originals
        self.originals: list[list[Any]] = []
        self.baseline = 0.0

    def start(self, originals: Sequence[Outputs]) -> None:
        """Take the original outputs; CalibrationError where there is nothing to compare."""
        self.originals = [[each[index] for index in self.compared] for each in originals]
        if callable(self.loss):
            self.baseline = self._given(originals)
        else:
            _check(self.originals)

    def __call__(self, run: Callable[[int], Outputs]) -> float:
        """The loss when call ``i`` gives ``run(i)``; infinite where that is not finite."""
        if self.later is not None:
            self.start(self.later())
            self.later = None
        if callable(self.loss):
            return max(0.0, self._given([run(call) for call in range(len(self.calls))]) - self.baseline)
        total, count = 0.0, 0.0
        for call, inputs in enumerate(self.calls):
            found = run(call)
            mask = inputs[self.samples.mask] if self.samples.mask is not None else None
            for index, original in zip(self.compared, self.originals[call], strict=True):
                pair = comparable(found[index], original)
                add = relative(*pair, mask, self.samples.by_rows) if self.loss == "error" else divergence(*pair, mask)
                total, count = total + add[0], count + add[1]
        value = total / count
        return max(0.0, value) if value == value else float("inf")

    def _given(self, outputs: Sequence[Outputs]) -> float:
        """Mean of the user's function over the calls, on the model's own output structure."""
        assert callable(self.loss)
        values = []
        for batch, found in zip(self.batches, outputs, strict=True):
            value = float(self.loss(_as_returned(self.capture, found), batch.given))
            if value != value:
                raise CalibrationError("loss_fn returned NaN on calibration data; it must be finite on the original")
            values.append(value)
        return sum(values) / len(values)


def _as_returned(capture: Capture, outputs: Outputs) -> Any:
    plain = list(outputs[len(capture.mutations) :])
    if capture.out_spec is not None:
        return capture.out_spec.unflatten(plain)
    return plain[0] if len(plain) == 1 else tuple(plain)


def _is_exact(dtype: torch.dtype | None) -> bool:
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def comparable(found: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """Both as fp32 of finite numbers. Whole numbers and truths: 1, and 2 where they differ; complex ones: their parts.

    Where the original is not finite (a mask's -inf), nothing counts as long as the found value is the same.
    """
    if _is_exact(original.dtype):
        return 1 + (found != original).float(), torch.ones(original.shape)
    if original.dtype.is_complex:
        found, original = torch.view_as_real(found.resolve_conj()), torch.view_as_real(original.resolve_conj())
    found, original = found.float(), original.float()
    finite = original.isfinite()
    if bool(finite.all()):
        return found, original
    same = (found == original) | (found.isnan() & original.isnan())
    kept = torch.where(finite, found, torch.where(same, 0.0, torch.inf))
    return kept, original.where(finite, torch.zeros(()))


def _check(originals: Sequence[Sequence[Tensor]]) -> None:
    flat = [each for call in originals for each in call]
    if not flat:
        raise CalibrationError("the model computes no output to compare; give loss_fn=callable")
    if all(_is_exact(each.dtype) for each in flat):
        return
    plain = [torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in flat]
    values = torch.cat([each[each.isfinite()][:4096].float() for each in plain])
    if not len(values):
        raise CalibrationError("the model's output on calibration data is NaN or Inf; clean the data or the model")
    if bool((values == values[0]).all()) and (len(values) > 1 or values[0] == 0):
        raise CalibrationError(
            f"the model's output on calibration data is {float(values[0]):g} everywhere; give data it answers to"
        )


def _weights(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """The mask as [B, T] floats where it fits the leading dimensions of ``like`` [B, T, ...]."""
    if mask is None or like.dim() < 3 or mask.shape != like.shape[: mask.dim()]:
        return None
    return (mask != 0).to(like.dtype)


def relative(found: Tensor, original: Tensor, mask: Tensor | None, by_rows: bool) -> tuple[float, float]:
    """Sum over samples of |y - y0|^2 / |y0|^2, and the number of samples; a zero original counts only if it moved."""
    weight = _weights(mask, original)
    if weight is not None:
        shape = weight.shape + (1,) * (original.dim() - weight.dim())
        found, original = found * weight.reshape(shape), original * weight.reshape(shape)
    rows = original.shape[0] if by_rows else 1
    off = (found - original).reshape(rows, -1).double().square().sum(1)
    size = original.reshape(rows, -1).double().square().sum(1)
    ratio = torch.where(size > 0, off / size.clamp(min=1e-300), (off > 0).double())
    return float(ratio.sum()), float(rows)


def divergence(found: Tensor, original: Tensor, mask: Tensor | None) -> tuple[float, float]:
    """Sum over positions of KL(softmax y0 || softmax y) in nats, and the number of positions."""
    log_p, log_q = F.log_softmax(original, -1), F.log_softmax(found, -1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    weight = _weights(mask, original)
    if weight is not None:
        weight = weight.reshape(weight.shape + (1,) * (each.dim() - weight.dim())).expand_as(each)
        return float((each * weight).double().sum()), float(weight.sum())
    return float(each.double().sum()), float(each.numel())

"""A library op that gives back its argument must not give back the arena's memory: another tensor is there soon."""

import pytest
import torch

from adaflex.runtime.library import _memory, _own, resolve


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("aten.type_as.default", lambda x: (x, x)),
        ("aten.contiguous.default", lambda x: (x,)),
        ("aten.narrow.default", lambda x: (x, 0, 0, 2)),
        ("aten.diagonal.default", lambda x: (x,)),
        ("aten.expand_as.default", lambda x: (x, x)),
        ("aten.atleast_2d.default", lambda x: (x,)),
        ("aten.relu.default", lambda x: (x,)),
        ("aten.conv1d.default", lambda x: (x[None], torch.ones(1, 4, 1))),
    ],
)
def test_results_are_in_memory_of_their_own(op: str, arguments: object) -> None:
    from adaflex.runtime.library import _may_alias

    x = torch.randn(4, 4)
    found = resolve(op)
    given = arguments(x)  # type: ignore[operator]
    result = found(*given)
    made = _own(result, _memory(given) if _may_alias(found) else set())
    assert torch.equal(made, result) and made.is_contiguous()
    assert made.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()

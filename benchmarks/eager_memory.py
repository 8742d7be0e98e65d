"""What eager PyTorch keeps alive: weights, and the most activation bytes at any one time of a call.

In: a model and arguments. Out: bytes. Storages are counted from when an operator makes them until they are freed.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operators make, while they live."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.most = known, 0, 0
        self.counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if storage.data_ptr() in self.known or place in self.counted:
            return
        self.counted.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self.counted.discard(place)
        self.now -= size


def eager_bytes(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, int]:
    """Weights and buffers, and the peak of live activations of one call."""
    held = {each.untyped_storage().data_ptr(): each for each in (*model.parameters(), *model.buffers())}
    weights = sum(each.untyped_storage().nbytes() for each in held.values())
    known = {*held, *(value.untyped_storage().data_ptr() for value in given.values())}
    with torch.no_grad(), Live(known) as live:
        model(**given)
    return {"weights": weights, "activations": live.most, "total": weights + live.most}

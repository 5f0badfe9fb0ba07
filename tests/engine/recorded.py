"""A CUDA graph played on the CPU: operations recorded once, on memory that stays where it was.

What replays is what was called, on the same tensors: a Python number that had been computed from
them stays what it was. To ask a tensor for its value, or to make one of Python numbers, is refused,
as on a GPU while a graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "lift_fresh")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.written: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _ASKS_THE_HOST:
            raise RuntimeError(f"{func} is not permitted while a graph is captured")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                target = args[place] if place < len(args) else (kwargs or {}).get(argument.name)
                storage = target.untyped_storage()
                self.written.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


def capture(run: Callable[[], None]) -> Callable[[], None]:
    """Record what `run` calls, and undo what it wrote: a capture does not execute."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        run()
    for storage, before in recorder.written.values():
        storage.copy_(before)

    def replay() -> None:
        with torch.no_grad():
            for func, args, kwargs, recorded in recorder.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    return replay

"""Runs code for the sizes of its tensors: numbers with a point are never computed, and memory is counted instead of used.

Inside `SizesOnly` every floating-point tensor is one of torch's fake tensors, which have a shape, a type and a lifetime, but
no numbers. Whole numbers and masks are real: lengths, positions and the places of targets decide which sizes there are.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

TYPED_BY_VALUE = ("arange", "full", "randint", "randperm", "scalar_tensor")


class MemoryLedger:
    """Bytes that are held, by kind, and what they were when their sum was largest.

    A new tensor has the kind `kind`; activations with a number for each token of the `vocabulary` are logits.
    """

    def __init__(self) -> None:
        self.kind, self.vocabulary = "activations", 0
        self.held: dict[str, int] = defaultdict(int)
        self.peak, self.at_peak = 0, dict[str, int]()
        self._kinds: dict[int, str] = {}  # by the storage's id
        self._total = 0

    @contextmanager
    def new_ones_are(self, kind: str) -> Iterator[None]:
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def note(self, tensor: Tensor, kind: str | None = None) -> None:
        """Counts the tensor's storage once, until it is freed; with `kind` it changes its kind."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if (old := self._kinds.get(key)) is not None:
            if kind is not None and kind != old:
                self._kinds[key] = kind
                self.held[old] -= size
                self.held[kind] += size
            return
        self._kinds[key] = kind or self._kind_of(tensor)
        weakref.finalize(storage, self._freed, key, size)
        self.held[self._kinds[key]] += size
        self._total += size
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, dict(self.held)

    def _kind_of(self, tensor: Tensor) -> str:
        is_logits = self.kind == "activations" and tensor.dim() > 0 and tensor.shape[-1] == self.vocabulary
        return "logits" if is_logits else self.kind

    def _freed(self, key: int, size: int) -> None:
        self.held[self._kinds.pop(key)] -= size
        self._total -= size

    def restart(self) -> None:
        """The peak is from now on."""
        self.peak, self.at_peak = self._total, dict(self.held)


class SizesOnly(TorchDispatchMode):
    """Context manager in which floating-point tensors have sizes only; `ledger` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger()
        self._fake = FakeTensorMode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, form = tree_flatten((args, kwargs or {}))
        if any(isinstance(value, FakeTensor) for value in flat):
            if func is torch.ops.aten._local_scalar_dense.default:
                return _some_number(args[0])
            flat = [self._faked(value) for value in _places(func, flat)]
            args, kwargs = tree_unflatten(flat, form)
            out = func(*args, **kwargs)
        elif not any(isinstance(value, Tensor) for value in flat) and _makes_numbers(func, flat, kwargs or {}):
            with self._fake:
                out = func(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, Tensor):
                self.ledger.note(value)
        return out

    def _faked(self, value: Any) -> Any:
        """A real tensor without its numbers."""
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._fake.from_tensor(value) if real else value


def _makes_numbers(func: Any, values: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation without tensors gives one with a point in its numbers."""
    dtype = kwargs.get("dtype")
    if dtype is None and func.overloadpacket.__name__ in TYPED_BY_VALUE:
        return any(isinstance(value, float) for value in values)
    return bool((dtype or torch.get_default_dtype()).is_floating_point)


def _places(func: Any, values: list[Any]) -> list[Any]:
    """The arguments of an operation, where masks that choose entries are replaced by the entries' places."""
    if not func.overloadpacket.__name__.startswith("index"):
        return values
    out: list[Any] = []
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor) and value.dtype == torch.bool:
            out.extend(value.nonzero().unbind(1))
        else:
            out.append(value)
    return out


def _some_number(tensor: Tensor) -> float | int | bool:
    """What stands for a number that was not computed."""
    return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


def give_sizes(module: nn.Module, mode: SizesOnly, kind: str) -> None:
    """Replaces the module's tensors, on the meta device, by ones of sizes only on the CPU; shared ones stay shared."""
    made: dict[int, Tensor] = {}

    def sized(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            fresh = torch.zeros(tensor.shape, dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_weight else fresh
        return made[id(tensor)]

    with mode, mode.ledger.new_ones_are(kind):
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_meta:
                        tensors[name] = sized(tensor)  # type: ignore[assignment]

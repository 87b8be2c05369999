"""system.sharding: fsdp2. Every process holds a shard of weights, gradients and optimizer state.

Only the root is wrapped: keys and values bypass a layer's output, which per-layer FSDP does not track. Checkpoints hold
whole tensors in the same files as without shards, so a run may resume with another sharding or none.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from kava.errors import ConfigError
from kava.objective.records import Result


class _Root(nn.Module):
    """The wrapped module. It returns plain tensors, because FSDP hooks the gradients of tensors in the output."""

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective
        self.result = Result([], {})

    def forward(self, *inputs: Any) -> list[Tensor]:
        self.result = self.objective(*inputs)
        return [term.total for term in self.result.terms]


class Sharded(nn.Module):
    """The sharded objective; called like the objective."""

    def __init__(self, objective: nn.Module, device: torch.device):
        super().__init__()
        from torch.distributed.fsdp import fully_shard

        refuse_types(objective)
        with torch.no_grad():
            for value in (*objective.parameters(), *objective.buffers()):
                distributed.broadcast(value, 0)
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        self.root: Any = fully_shard(_Root(objective), mesh=mesh, reshard_after_forward=False)

    def forward(self, *inputs: Any) -> Result:
        totals = self.root(*inputs)
        result = self.root.result
        self.root.result = Result([], {})
        terms = [replace(term, total=total) for term, total in zip(result.terms, totals, strict=True)]
        return Result(terms, result.health)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Context manager: all weights on every process, as plain tensors."""
        hooks = {module: module._state_dict_pre_hooks for module in self.root.modules()}
        self.root.unshard()
        try:
            for module in hooks:  # FSDP's own hooks, with which state_dict() would give shards
                module._state_dict_pre_hooks = OrderedDict()
            yield
        finally:
            for module, own in hooks.items():
                module._state_dict_pre_hooks = own
            self.root.reshard()


def refuse_types(objective: nn.Module) -> None:
    """Raises where trained weights have several dtypes: FSDP reduces gradients of one dtype only."""
    types = {weight.dtype for weight in objective.parameters() if weight.requires_grad}
    kinds = sorted(str(dtype).removeprefix("torch.") for dtype in types)
    if len(kinds) > 1:
        raise ConfigError(
            f"system.sharding=fsdp2 needs one type for all that is trained, and here it is {' and '.join(kinds)}",
            "set model.dtype=float32 (with system.mixed_precision=bf16), or lora.enabled=true, or system.sharding=none",
        )


def whole_tensor(value: Any) -> Any:
    """A sharded tensor gathered, anything else unchanged; all processes call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _shard_like(weight: DTensor, value: Any) -> Any:
    """An optimizer's moment sharded as its weight is; anything of another shape unchanged."""
    if not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def follow_shards(optimizer: torch.optim.Optimizer) -> None:
    """Makes the optimizer save whole tensors and shard what it loads."""

    def joined(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        state = saved["state"].items()
        return saved | {"state": {n: {name: whole_tensor(part) for name, part in parts.items()} for n, parts in state}}

    def cut(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = dict(saved["state"])
        for number, weight in zip(numbers, weights, strict=True):
            if number in state and isinstance(weight, DTensor):
                state[number] = {name: _shard_like(weight, part) for name, part in state[number].items()}
        return saved | {"state": state}

    optimizer.register_state_dict_post_hook(joined)
    optimizer.register_load_state_dict_pre_hook(cut)

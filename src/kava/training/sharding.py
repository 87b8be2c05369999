"""system.sharding: fsdp2. Weights, gradients and optimizer lie in shards on all processes; each gathers them to compute.

Only the root is wrapped: keys and values leave a layer by the side, which a layer that is gathered by itself forgets. What
is saved is whole, in the same files as without shards, so that a run may go on with others or none.
"""

from __future__ import annotations

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
    """What is wrapped. Plain tensors come out, for a wrapper waits for the gradient of what it can see."""

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective
        self.result = Result([], {})

    def forward(self, *inputs: Any) -> list[Tensor]:
        self.result = self.objective(*inputs)
        return [term.total for term in self.result.terms]


class Sharded(nn.Module):
    """The objective in shards; called as the objective is."""

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
        """All weights on every process, as plain tensors."""
        hooks = {module: module._state_dict_pre_hooks for module in self.root.modules()}
        self.root.unshard()
        try:
            for module in hooks:  # the wrapper's own, with which state_dict() would give shards
                module._state_dict_pre_hooks = OrderedDict()
            yield
        finally:
            for module, own in hooks.items():
                module._state_dict_pre_hooks = own
            self.root.reshard()


def refuse_types(objective: nn.Module) -> None:
    """Gradients of one type can be shared out, of several not."""
    kinds = sorted(
        {str(weight.dtype).removeprefix("torch.") for weight in objective.parameters() if weight.requires_grad}
    )
    if len(kinds) > 1:
        raise ConfigError(
            f"system.sharding=fsdp2 needs one type for all that is trained, and here it is {' and '.join(kinds)}",
            "set model.dtype=float32 (with system.mixed_precision=bf16), or lora.enabled=true, or system.sharding=none",
        )


def whole_tensor(value: Any) -> Any:
    """A number or tensor as it is without shards; all processes ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def follow_shards(optimizer: torch.optim.Optimizer) -> None:
    """What the optimizer saves is whole, and what it loads is cut up again."""

    def joined(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        state = {
            number: {name: whole_tensor(value) for name, value in parts.items()}
            for number, parts in saved["state"].items()
        }
        return saved | {"state": state}

    def cut(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = dict(saved["state"])
        for number, weight in zip(numbers, weights, strict=True):
            parts = state.get(number, {})
            state[number] = {
                name: distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
                if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape
                else value
                for name, value in parts.items()
            }
        return saved | {"state": {number: parts for number, parts in state.items() if parts}}

    optimizer.register_state_dict_post_hook(joined)
    optimizer.register_load_state_dict_pre_hook(cut)

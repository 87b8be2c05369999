"""system.sharding: fsdp2, fsdp2_whole. Every process holds a shard of weights, gradients and optimizer state.

fsdp2        layer by layer: each decoder layer is whole only while it computes (`backbone/layer_units.py`). What is left,
             embedding, head, last norm and all that is trained beside the student, is one more unit, whole from the
             beginning of a forward pass to the end of its backward pass
fsdp2_whole  everything is one unit
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from kava.backbone.artifact import Weights, fingerprint
from kava.backbone.layer_units import into_units, out_of_units
from kava.errors import ConfigError
from kava.objective.objective import Objective
from kava.objective.records import Result
from kava.training.processes import is_main_process

T = TypeVar("T")


class _Root(nn.Module):
    """Runs any work inside FSDP's hooks. It returns plain tensors, because FSDP hooks the gradients of its output."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = objective
        self.value: Any = None

    def forward(self, work: Callable[[], Any]) -> list[Tensor]:
        self.value = work()
        return [term.total for term in self.value.terms] if isinstance(self.value, Result) else []


class Sharded(nn.Module):
    """The sharded objective; called like the objective."""

    def __init__(self, objective: Objective, device: torch.device, by_layer: bool = False):
        super().__init__()
        from torch.distributed.fsdp import fully_shard

        refuse_types(objective)
        self.frozen = fingerprint(objective.model)  # while its weights are whole
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        units: list[Any] = [*into_units(objective.model)] if by_layer else []
        for unit in units:
            _same_everywhere(unit, device)
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        root = _Root(objective)
        _same_everywhere(root, device)
        self.root: Any = fully_shard(root, mesh=mesh, reshard_after_forward=False)
        self.run(lambda: None)  # the first call makes it the root of all units
        for unit in units:  # weights that are first gathered in inference mode could not be trained
            unit.unshard()
            unit.reshard()
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view", UserWarning
        )  # nothing writes to it

    def forward(self, *inputs: Any) -> Result:
        return self._run(lambda: self.root.objective(*inputs))

    def run(self, work: Callable[[], T]) -> T:
        """The value of `work`, which calls passes of the model and needs no gradients; all processes call it together."""
        try:
            return self._run(work)
        finally:
            self.root.reshard()  # no backward pass does it

    def _run(self, work: Callable[[], T]) -> T:
        self.root(work)
        value, self.root.value = self.root.value, None
        return value  # type: ignore[no-any-return]

    def gathered(self) -> tuple[Weights, dict[str, Tensor]]:
        """The student's trained weights and the objective's `aux_state`, whole, in the first process; all call it."""
        objective = self.root.objective
        return Weights(_gathered(objective.model.trained()), self.frozen), _gathered(objective.aux_state())

    def consolidate(self) -> None:
        """Ends the sharding: the first process then has the objective with all its weights on the CPU."""
        objective, whole = self.root.objective, {}
        for module in list(objective.modules()):
            for name, weight in module._parameters.items():
                if weight is not None and id(weight) not in whole:
                    value = _on_main(weight)
                    whole[id(weight)] = nn.Parameter(value, weight.requires_grad)
                if weight is not None:
                    module._parameters[name] = whole[id(weight)]
        out_of_units(objective.model)


def _gathered(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: _on_main(value) for name, value in state.items()}


def _on_main(value: Tensor) -> Tensor:
    """The whole tensor on the CPU of the first process, an empty one elsewhere."""
    whole = whole_tensor(value.detach())
    return whole.cpu() if is_main_process() else torch.empty(0)  # type: ignore[no-any-return]


def _same_everywhere(module: nn.Module, device: torch.device) -> None:
    """Moves what is no shard yet to the device and takes the first process's values."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if not isinstance(value, DTensor):
                value.data = value.data.to(device)
                distributed.broadcast(value, 0)


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

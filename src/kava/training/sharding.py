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
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from kava.backbone.artifact import Weights, fingerprint
from kava.backbone.layer_units import into_units, out_of_units
from kava.config import SystemConfig
from kava.errors import ConfigError
from kava.objective.objective import Objective
from kava.objective.records import Result
from kava.training.processes import is_main_process, shard_world

T = TypeVar("T")


class RootUnit(nn.Module):
    """Runs any work inside FSDP's hooks. It returns plain tensors, because FSDP hooks the gradients of its output."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.value: Any = None

    def forward(self, work: Callable[[], Any]) -> list[Tensor]:
        self.value = work()
        return [term.total for term in self.value.terms] if isinstance(self.value, Result) else []

    def value_of(self, work: Callable[[], T]) -> T:
        """What `work` returns, with the weights outside the units gathered."""
        self(work)
        value, self.value = self.value, None
        return value  # type: ignore[no-any-return]


class Sharded(nn.Module):
    """The sharded objective; called like the objective."""

    def __init__(self, objective: Objective, device: torch.device, system: SystemConfig):
        super().__init__()
        refuse_types(objective)
        self.by_layer, self.device_type = system.sharding == "fsdp2", device.type
        self.in_bf16 = self.by_layer and system.mixed_precision == "bf16"
        self.frozen = fingerprint(objective.model)  # while its weights are whole
        how = placement(device, system)
        units: list[Any] = [*into_units(objective.model)] if self.by_layer else []
        for unit in units:
            _same_everywhere(unit, device)
            fully_shard(unit, reshard_after_forward=True, mp_policy=_of_layers(system), **how)
        root = RootUnit(objective)
        _same_everywhere(root, device)
        self.root: Any = fully_shard(root, reshard_after_forward=False, **how)
        self.run(lambda: None)  # the first call makes it the root of all units
        for unit in units:  # weights that are first gathered in inference mode could not be trained
            unit.unshard()
            unit.reshard()
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view", UserWarning
        )  # nothing writes to it

    def forward(self, *inputs: Any) -> Result:
        return self._run(lambda: self.root.inner(*inputs))

    def run(self, work: Callable[[], T]) -> T:
        """The value of `work`, which calls passes of the model and needs no gradients; all processes call it together."""
        try:
            return self._run(work)
        finally:
            self.root.reshard()  # no backward pass does it

    def _run(self, work: Callable[[], T]) -> T:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.in_bf16):
            return self.root.value_of(work)  # type: ignore[no-any-return]

    def gathered(self) -> tuple[Weights, dict[str, Tensor]]:
        """The student's trained weights and the objective's `aux_state`, whole, in the first process; all call it."""
        objective = self.root.inner
        return Weights(_gathered(objective.model.trained()), self.frozen), _gathered(objective.aux_state())

    def named(self) -> tuple[Weights, dict[str, Tensor]]:
        """The same with the trained weights as they are, in shards."""
        objective = self.root.inner
        return Weights(objective.model.trained(), self.frozen), _gathered(objective.aux_state())

    def consolidate(self) -> None:
        """Ends the sharding: the first process then has the objective with all its weights on the CPU."""
        objective, whole = self.root.inner, {}
        for module in list(objective.modules()):
            for name, weight in module._parameters.items():
                if weight is not None and id(weight) not in whole:
                    value = _on_main(weight)
                    whole[id(weight)] = nn.Parameter(value, weight.requires_grad)
                if weight is not None:
                    module._parameters[name] = whole[id(weight)]
        out_of_units(objective.model)


def placement(device: torch.device, system: SystemConfig) -> dict[str, Any]:
    """Where shards are, as keywords of fully_shard: on all processes, or of several nodes on those of each node; with
    system.cpu_offload on the CPU."""
    processes = distributed.get_world_size()
    shape, names = (processes,), ("shard",)
    if (shards := shard_world(processes)) < processes:  # a copy on each node
        shape, names = (processes // shards, shards), ("replicate", "shard")  # type: ignore[assignment]
    how: dict[str, Any] = {"mesh": init_device_mesh(device.type, shape, mesh_dim_names=names)}
    if system.cpu_offload:
        how["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    return how


def _of_layers(system: SystemConfig) -> MixedPrecisionPolicy:
    """Under autocast layers are gathered in its type; what flows between them, and gradients, stay as they are."""
    if system.mixed_precision != "bf16":
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


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
    if not isinstance(value, Tensor) or isinstance(value, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def follow_shards(optimizer: torch.optim.Optimizer, gather: bool) -> None:
    """Makes the optimizer save whole moments (without `gather` none), and shard whole ones that it loads."""

    def joined(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        state = saved["state"].items() if gather else ()
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

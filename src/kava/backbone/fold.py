"""LoRA adapters folded into the weights, for answering: W + s B A is one product in a layer, not three.

Sums are rounded in another order, so logits differ in their last bits.                                          [ours]
"""

import copy
from typing import Any

import torch
from torch import nn

from kava.backbone.model import LatentModel
from kava.console import tell

GIB = 2**30


def has_adapters(model: LatentModel) -> bool:
    return hasattr(model.backbone, "merge_and_unload")


@torch.no_grad()
def folded(model: LatentModel) -> LatentModel:
    """A copy without adapters that gives the same logits; every weight that has none is shared with `model`, which stays
    as it is. The model itself where there are no adapters, or (said in a line) no memory for a second copy."""
    if not has_adapters(model) or not _has_room(model):
        return model
    shared = {id(part): part for part in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    own: dict[int, nn.Parameter] = {}  # one for tied weights
    for layer in adapted_layers(twin):
        weight = layer.weight
        layer.weight = own.setdefault(id(weight), nn.Parameter(weight.detach().clone(), requires_grad=False))
    twin.backbone = twin.backbone.merge_and_unload()
    return twin


def adapted_layers(model: LatentModel) -> list[Any]:
    """The layers, linear or embedding, whose weights adapters change."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


def _has_room(model: LatentModel) -> bool:
    """Whether the folded weights take at most half of the device's free memory; tells if not."""
    weights = {id(layer.weight): layer.weight for layer in adapted_layers(model)}.values()
    needed, free = sum(weight.numel() * weight.element_size() for weight in weights), _free_memory(model.device)
    if 2 * needed > free:
        tell(
            f"note: adapters stay apart from the weights: folding them takes {needed / GIB:.1f} GiB of the "
            f"{free / GIB:.1f} that are free; answers are the same but for rounding, and slower"
        )
    return 2 * needed <= free


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return int(psutil.virtual_memory().available)

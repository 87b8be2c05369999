"""The kernels of scaled dot-product attention: which take our passes, and whether they give what the math kernel gives."""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kava.config import LatentConfig
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.students import (
    MEDIUM,
    TOY,
    MeasuredLoss,
    StudentShape,
    measured_loss,
    objective_of,
    uneven_batch,
)
from kava.lab.bench.timing import ratio, take_turns

KERNELS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
REFUSALS = ("No available kernel", "No viable backend", "cuDNN Frontend error")
TERMS, GRADIENT, OUTPUT = 2e-2, 1e-1, 3e-2  # in two bytes
LONG = 1024  # tokens of the causal pass


def run(setup: KitSetup) -> KitFinding:
    """Under each kernel alone: a causal pass with grouped heads and no mask, and the whole loss."""
    shape = TOY if setup.tiny else MEDIUM
    model = shape.student(setup, LatentConfig(num_tokens=6, num_iterations=3), torch.float32)
    objective, batch = objective_of(model), uneven_batch(setup.device, shape.vocabulary)
    causal: dict[str, Any] = {
        name: _unless_refused(kernel, partial(_causal, setup, shape)) for name, kernel in KERNELS.items()
    }
    losses: dict[str, Any] = {
        name: _unless_refused(kernel, partial(measured_loss, objective, batch, setup.half))
        for name, kernel in KERNELS.items()
    }
    wrong = [name for name, out in causal.items() if out is not None and not _gap(out, causal["math"]) <= OUTPUT]
    wrong += [name for name, loss in losses.items() if loss is not None and not _alike(loss, losses["math"])]
    if wrong:
        raise KitFailure(f"not what the math kernel gives: {', '.join(dict.fromkeys(wrong))}")
    able = [name for name, out in causal.items() if out is not None]
    with_loss = [name for name, loss in losses.items() if loss is not None]
    ways = {name: partial(_under, KERNELS[name], partial(_causal, setup, shape)) for name in able}
    times = take_turns(ways, 3, setup.device)
    speed = {name: ratio(times["math"].wall, times[name].wall) for name in able}
    text = f"causal: {_listed(speed)}; our passes: {', '.join(with_loss)}"
    return KitFinding(text, {"causal_speed_up": speed, "take_our_passes": with_loss})


def _listed(speed: dict[str, float]) -> str:
    return ", ".join(f"{name} {times:.1f} x" for name, times in speed.items() if name != "math") or "math only"


def _causal(setup: KitSetup, shape: StudentShape) -> Tensor:
    """Output and gradient of attention over one long row per batch entry."""
    generator = torch.Generator().manual_seed(0)
    tokens, size = (64 if setup.tiny else LONG), 64
    drawn = [torch.randn(4, heads, tokens, size, generator=generator) for heads in (shape.heads, *[shape.kv_heads] * 2)]
    query, key, value = (part.to(setup.device, setup.half).requires_grad_() for part in drawn)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    out.square().sum().backward()
    assert query.grad is not None
    return torch.cat([out.detach(), query.grad], dim=-1).float()


def _under(kernel: SDPBackend, call: Any) -> Any:
    with sdpa_kernel(kernel):
        return call()


def _unless_refused(kernel: SDPBackend, call: Any) -> Any:
    """What the call gives under this kernel alone; None where the kernel does not take it, which torch says in words."""
    try:
        with warnings.catch_warnings():  # it also warns of each reason
            warnings.simplefilter("ignore")
            return _under(kernel, call)
    except RuntimeError as error:
        if not any(words in str(error) for words in REFUSALS):
            raise
        return None


def _gap(out: Tensor, wanted: Tensor) -> float:
    return float((out - wanted).norm() / wanted.norm())


def _alike(loss: MeasuredLoss, wanted: MeasuredLoss) -> bool:
    return loss.term_gap(wanted) <= TERMS and loss.gradient_gap(wanted) <= GRADIENT

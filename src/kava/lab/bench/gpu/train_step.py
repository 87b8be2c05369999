"""One training step of the paper's recipe at the shapes of a real model with random weights, beside PCCoT's order."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kava.config import LatentConfig
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.rates import data_sheet_rate, product_rate
from kava.lab.bench.gpu.students import LLAMA_1B, QWEN_05B, TOY, StudentShape, with_lora
from kava.lab.bench.host_reads import host_reads
from kava.lab.bench.timing import peak_memory, ratio, take_turns
from kava.lab.bench.train import UNLOGGED, TrainBenchSizes, a_batch, gflop, objectives
from kava.losses import add
from kava.objective.objective import Objective

SHAPES = {"llama-1b": LLAMA_1B, "qwen-0.5b": QWEN_05B}
ORDERS = ("packed", "pccot")
BATCH, QUESTION, COT, LATENTS, ROUNDS = 32, 64, 60, 24, 3
SMALLEST = 1
LIMIT = 3e-2  # of the loss, in two bytes


def run(setup: KitSetup, name: str) -> KitFinding:
    """The largest batch of 32, 16, ... that fits in both orders: ratio, tokens a second, use of the device, peak memory,
    host reads."""
    shape = TOY if setup.tiny else SHAPES[name]
    latent = (
        LatentConfig(num_tokens=4, num_iterations=2)
        if setup.tiny
        else LatentConfig(num_tokens=LATENTS, num_iterations=ROUNDS)
    )
    model = with_lora(shape.student(setup, latent, setup.half)).train()
    orders = {order: objective for order, (_, _, objective) in objectives(model).items() if order in ORDERS}
    size = 2 if setup.tiny else BATCH
    while True:
        batch = a_batch(_sizes(shape, size, latent, setup.tiny), setup.device)
        try:
            return _measure(setup, orders, batch)
        except torch.OutOfMemoryError:
            if size == SMALLEST:
                raise
        for objective in orders.values():
            objective.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        size //= 2


def _sizes(shape: StudentShape, size: int, latent: LatentConfig, tiny: bool) -> TrainBenchSizes:
    question, cot = (7, 9) if tiny else (QUESTION, COT)
    sizes = (shape.layers, shape.width, shape.heads, shape.kv_heads, shape.vocabulary)
    return TrainBenchSizes(*sizes, question, cot, size, latent.num_tokens, latent.num_iterations)


def _measure(setup: KitSetup, orders: dict[str, Objective], batch: dict[str, Tensor]) -> KitFinding:
    steps: dict[str, Callable[[], Tensor]] = {
        name: partial(_step, setup, objective, batch, objective.counts(batch, UNLOGGED))
        for name, objective in orders.items()
    }
    losses = {name: float(step()) for name, step in steps.items()}
    packed, pccot = (losses[name] for name in ORDERS)
    if not abs(packed - pccot) <= LIMIT * max(1.0, abs(pccot)):
        raise KitFailure(f"the loss is {packed:.4f}, and {pccot:.4f} in PCCoT's order")
    peaks = {name: peak_memory(step, setup.device) for name, step in steps.items()}
    reads = {name: host_reads(step, setup.device) for name, step in steps.items()}
    work = {name: gflop(step) for name, step in steps.items()}
    times = take_turns(steps, 1 if setup.tiny else 3, setup.device)
    seconds = times["packed"].facts()["seconds"]
    tokens = sum(int(batch[name].sum()) for name in ("question_mask", "cot_mask", "tail_mask"))
    sheet = data_sheet_rate(setup.device)
    achieved = 1e9 * work["packed"] / seconds
    product = product_rate(setup.device, setup.half, 256 if setup.tiny else 8192)
    figures: dict[str, Any] = {
        "batch_size": len(batch["question"]),
        "losses": losses,
        "seconds": {name: way.facts()["seconds"] for name, way in times.items()},
        "ratio": ratio(times["pccot"].wall, times["packed"].wall),
        "gflop": work,
        "tokens_per_second": tokens / seconds,
        "mfu": None if sheet is None else achieved / sheet,
        "share_of_a_product": achieved / product,
        "product_flops": product,
        "peak_bytes": peaks,
        "host_reads": reads,
    }
    mfu = "MFU unknown for this device" if figures["mfu"] is None else f"MFU {100 * figures['mfu']:.0f} %"
    text = (
        f"batch {figures['batch_size']}: PCCoT's order takes {figures['ratio']:.2f} x as long; "
        f"{figures['tokens_per_second']:.0f} tokens/s, {mfu}, {100 * achieved / product:.0f} % of a large product; "
        f"peak {_gib(peaks['packed'])} GiB (PCCoT {_gib(peaks['pccot'])}); host reads {reads['packed']}"
    )
    return KitFinding(text, figures)


def _step(setup: KitSetup, objective: Objective, batch: dict[str, Tensor], counts: dict[str, float]) -> Tensor:
    """Forward and backward; the loss stays on the device."""
    objective.zero_grad(set_to_none=True)
    with torch.autocast(setup.device.type, setup.half):
        loss = add(objective(batch, UNLOGGED, counts).terms)
    loss.backward()
    return loss.detach()


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.3g}"

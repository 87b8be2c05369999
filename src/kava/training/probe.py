"""`--batch_size probe`: the largest batch that fits, measured on the longest examples before the run."""

import gc
import sys
from collections.abc import Callable, Iterable
from itertools import islice

import torch

from kava.backbone.load import build_model
from kava.backbone.silence_libraries import silence_libraries
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.cut import cut
from kava.errors import RunError
from kava.infer.student import pick_device
from kava.losses import add
from kava.progress import track
from kava.training.data import load_data
from kava.training.memory import token_budget
from kava.training.method_line import explicit_line

SIZES = (1, 2, 4, 8, 16, 32)
CANDIDATES = 4096  # examples of a stream among which the longest are searched
SHARE = 0.8  # of the free memory of a machine without a GPU


def largest_batch(
    step: Callable[[int], None], sizes: Iterable[int] = SIZES, fits: Callable[[int], bool] = lambda _: True
) -> int:
    """The largest of the rising `sizes` for which `step` does not run out of memory.

    `fits` may stop earlier, where running out of memory would end the process.
    """
    best = 0
    for size in sizes:
        if best and not fits(size):
            break
        try:
            step(size)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error):
                raise
            break
        best = size
    if best == 0:
        raise RunError(
            "not even one example fits into memory",
            "see docs/oom.md: dataset.max_length, training.gradient_checkpointing=true, a quantised teacher",
        )
    return best


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is CUDA's out-of-memory error, or the CPU allocator's or MPS's, known by their messages."""
    messages = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)


def measured_batch(recipe: Recipe) -> int:
    """The largest batch of 1, 2, 4, ... of the longest training examples for forward, backward and optimizer."""
    silence_libraries()
    try:
        return _measure(recipe, pick_device(recipe.system.device))
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(recipe: Recipe, device: torch.device) -> int:
    model, tokenizer = build_model(recipe)
    data = load_data(recipe, tokenizer)
    rows = sorted(islice(iter(data.train), CANDIDATES), key=len, reverse=True)
    objective = explicit_line(recipe, model, tokenizer, data, device, lambda: False).objective
    collate = Collator(tokenizer.pad_token_id)
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.system.mixed_precision)
    optimizer = torch.optim.AdamW([w for w in objective.parameters() if w.requires_grad], lr=0.0)

    def step(size: int) -> None:
        for piece in cut(collate(rows[:size]), token_budget(recipe, device)):
            batch = {name: value.to(device) for name, value in piece.items()}
            with torch.autocast(device.type, precision, enabled=precision is not None):
                loss = add(objective(batch).terms)
            loss.backward()
        optimizer.step()  # its moments stay in memory from the first update on
        optimizer.zero_grad(set_to_none=True)

    sizes = [size for size in SIZES if size <= len(rows)]
    return largest_batch(step, track(sizes, "measuring the largest batch", unit="sizes"), _room(device))


def _room(device: torch.device) -> Callable[[int], bool]:
    """On the CPU, where running out ends the process: tries a size only while twice the growth so far is free."""
    if device.type != "cpu":
        return lambda _: True
    import psutil

    initial = psutil.Process().memory_info().rss
    return lambda _: 2 * max(_peak() - initial, 0) < SHARE * psutil.virtual_memory().available


def _peak() -> int:
    """Peak memory of this process in bytes; its present memory on Windows."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().rss)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

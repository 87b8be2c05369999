"""The memory of a training run on one of its processes, from an update whose tensors have sizes only.

The update is the code's own: the same passes, pieces of the cross-entropy, checkpointing, autocast and optimizer. So the
estimate follows what they do, without a formula for any of them. Pieces of a batch come one after the other and are
about equally large, so the largest one stands for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from kava.backbone.kv import KVShape
from kava.backbone.load import build_model, load_teacher, sizes_only
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.cut import cut, row_lengths
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.infer.student import pick_device
from kava.lab.memory.sizes_only import MemoryLedger, SizesOnly, give_sizes
from kava.losses import add
from kava.objective.make import make_objective
from kava.objective.objective import Objective
from kava.objective.records import Step
from kava.teachers.base import Batch, TeacherKV, TeacherWants
from kava.teachers.live import LiveTeacher
from kava.training.memory import token_budget
from kava.training.sharding_rules import sharding_of

META = torch.device("meta")
UNLOGGED = Step(log=False)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
NF4, INT8 = 0.52, 1.0  # bytes of a quantised weight, with its scales
ADAMW = ("adamw_torch", "adamw_torch_fused")
STATE_BYTES = {  # of an optimizer that is not run, for each trained number
    "adamw_8bit": 2.0, "adamw_bnb_8bit": 2.0, "paged_adamw_8bit": 2.0, "sgd": 0.0, "adafactor": 0.1, "lion": 4.0
}  # fmt: skip
KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "teacher", "store")


@dataclass(frozen=True)
class MemoryEstimate:
    """parts: bytes by kind at the moment of the peak, on one process; trained, whole: numbers that are trained, that are
    held; unit: bytes of the largest layer or embedding, which sharding holds whole."""

    parts: dict[str, int]
    trained: int
    whole: int
    unit: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def estimate(recipe: Recipe, rows: Sequence[Encoded], processes: int = 1) -> MemoryEstimate:
    """The peak of an update on a batch of these rows, the optimizer's state being there."""
    if recipe.reads_steps:
        raise ConfigError(
            "the memory of a decoder of steps and of a curriculum of stages is not estimated",
            "set loss.step_decoder=0 and latent.stage_share=0 for that of everything else",
        )
    with sizes_only():
        model, _ = build_model(recipe)
        teacher, quantised = _teacher(recipe)
        objective = make_objective(recipe, model, teacher)
    mode = SizesOnly()
    give_sizes(objective, mode, "weights")
    if isinstance(teacher, LiveTeacher):
        give_sizes(teacher.model, mode, "teacher")
    mode.ledger.vocabulary = objective.model.config.vocab_size
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    for weight in trained:
        weight.register_post_accumulate_grad_hook(lambda weight: mode.ledger.note(weight.grad, "gradients"))
    batch, budget = Collator(0)(rows), token_budget(recipe, device_of(recipe, processes))
    mode.ledger.restart()
    objective.train()
    with mode:
        run_update(recipe, objective, trained, batch, budget, mode.ledger)
    parts = {kind: mode.ledger.at_peak.get(kind, 0) for kind in KINDS}
    one_process = MemoryEstimate(parts, sum(weight.numel() for weight in trained),
                           sum(weight.numel() for weight in objective.parameters()), _largest_unit(objective))  # fmt: skip
    return per_process(
        recipe, replace(one_process, parts=parts | _unsimulated(recipe, one_process, quantised)), processes
    )


def run_update(
    recipe: Recipe,
    objective: Objective,
    trained: list[nn.Parameter],
    batch: Batch,
    budget: int | None,
    ledger: MemoryLedger,
) -> None:
    """An update as the trainer makes it, not the first, with the largest piece of the batch in place of all of them.

    It runs twice where an update has several pieces: the first one's gradients are held while the second is computed.
    """
    counts = objective.counts(batch, UNLOGGED)
    optimizer = torch.optim.AdamW(trained, foreach=False) if recipe.training.optimizer in ADAMW else None
    if optimizer is not None:
        with ledger.new_ones_are("optimizer"):
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
            optimizer.step()
        objective.zero_grad(set_to_none=True)
    pieces = cut(batch, budget)
    largest = max(pieces, key=lambda piece: sum(row_lengths(piece)))
    autocast = AUTOCAST.get(recipe.system.mixed_precision)
    for _ in range(min(2, len(pieces) * recipe.training.gradient_accumulation_steps)):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = add(objective(largest, UNLOGGED).terms, counts)
        loss.backward()
        del loss
    if optimizer is not None:
        with ledger.new_ones_are("optimizer"):
            optimizer.step()
    objective.zero_grad(set_to_none=True)


def device_of(recipe: Recipe, processes: int) -> torch.device:
    """Where the run will be: several processes have GPUs, which this machine need not have."""
    if recipe.system.device != "auto":
        return torch.device(recipe.system.device)
    return torch.device("cuda") if processes > 1 else pick_device("auto")


def _teacher(recipe: Recipe) -> tuple["LiveTeacher | StoredSizes | None", float | None]:
    """The explicit line's teacher, and bytes of each of its numbers where they are quantised."""
    loss, settings = recipe.loss, recipe.teacher
    wanted = loss.alpha2_kv or loss.alpha1_codi or recipe.explicit.cka_weight
    if recipe.mixture.on:
        raise ConfigError(
            "the memory of several teachers is not estimated",
            "estimate each as the one teacher, and add what they hold",
        )
    if not recipe.explicit.enabled or not wanted:
        return None, None
    if settings.store is not None:
        from kava.teachers.manifest import read_manifest

        manifest = read_manifest(settings.store)
        return StoredSizes(manifest.shape, getattr(torch, manifest.dtype)), None
    from kava.backbone.load import load_tokenizer, locate

    tokenizer = load_tokenizer(locate(recipe.model.name, recipe.model.gguf_file), recipe.model)
    return LiveTeacher(load_teacher(recipe, tokenizer, META)), {"nf4": NF4, "int8": INT8}.get(settings.quantization)


class StoredSizes:
    """What a store gives for a batch, in sizes only."""

    def __init__(self, shape: KVShape, dtype: torch.dtype):
        self.shape, self.dtype = shape, dtype

    def __call__(self, batch: Batch, wants: TeacherWants) -> TeacherKV:
        shape, (rows, columns) = self.shape, batch["cot"].shape
        heads = (rows, shape.num_heads, columns)
        keys, values = (
            [torch.zeros(*heads, shape.head_size, dtype=self.dtype) for _ in range(shape.num_layers)] for _ in range(2)
        )
        importance = [torch.zeros(heads) for _ in range(shape.num_layers)] if wants.importance else None
        cue = torch.zeros(rows, shape.num_layers, shape.hidden_size, dtype=self.dtype) if wants.cue else None
        return TeacherKV(keys, values, importance, cue)


def _unsimulated(recipe: Recipe, one_process: MemoryEstimate, quantised: float | None) -> dict[str, int]:
    """Parts that no update with sizes shows: quantised weights, and optimizers that are not run."""
    parts: dict[str, int] = {}
    if quantised is not None:
        parts["teacher"] = int(one_process.parts["teacher"] * quantised / 2)
    name = recipe.training.optimizer
    if name not in ADAMW:
        parts["optimizer"] = int(STATE_BYTES.get(name, 8.0) * one_process.trained)
    return parts


def _largest_unit(objective: Objective) -> int:
    """Bytes of the largest decoder layer, or of embedding and head."""
    lm = objective.model.causal_lm
    lists = [part for part in objective.model.decoder.children() if isinstance(part, nn.ModuleList)]
    layers = [_bytes(layer) for blocks in lists for layer in blocks]
    return max([*layers, _bytes(lm.get_input_embeddings())])


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def per_process(recipe: Recipe, one_process: MemoryEstimate, processes: int) -> MemoryEstimate:
    """What one of several processes holds: all of it and the buckets of its gradients, or a shard and two units."""
    if processes == 1:
        return one_process
    parts, sharding = dict(one_process.parts), sharding_of(recipe, processes)
    if sharding == "none":
        parts["gradients"] *= 2
    else:
        whole = sharding == "fsdp2_whole"
        parts["weights"] = (
            parts["weights"] if whole else min(parts["weights"], parts["weights"] // processes + 2 * one_process.unit)
        )
        for kind in ("gradients", "optimizer"):
            parts[kind] //= processes
    return replace(one_process, parts=parts)

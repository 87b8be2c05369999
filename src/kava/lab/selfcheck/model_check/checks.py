"""What the method needs of a model, one check each: (Subject) -> what was seen; an Unlike says what differs.

Everything is compared with the library itself: its own attention, its own cache, its own `generate`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.pytorch_utils import Conv1D

from kava.align.rope import unrotate
from kava.backbone.attention import NAME, capped_weights
from kava.backbone.families import Family, rotated_alike
from kava.backbone.kv import Pass
from kava.backbone.lora import add_lora
from kava.backbone.masks import causal_mask, positions, within_window
from kava.backbone.model import LatentModel
from kava.backbone.tokens import SpecialTokens
from kava.compress import make_compressor
from kava.config import LatentConfig, LoraConfig, LossConfig
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.infer.generate import generate, think
from kava.lab.bench.reference import library_twin
from kava.losses import add
from kava.objective.make import latent_objective
from kava.objective.records import PassOutputs
from kava.objective.unpacked import run_student

LENGTHS = (
    (5, 7, 2),
    (3, 2, 1),
    (17, 12, 2),
    (6, 0, 3),
)  # question, chain of thought, answer; the third exceeds a window
NUM_LATENTS, NEW_TOKENS, NO_TOKEN = 4, 12, -1
LARGEST = 2**21  # numbers in a weight whose gradient is compared: a real model's larger ones would fill the memory
ROWS = tuple(range(len(LENGTHS)))


class Unlike(Exception):
    """What a model does otherwise than its row in the table of families says, or than the method needs."""


@dataclass(frozen=True)
class Loss:
    """Each term's sum, and the gradient of the weighted loss by parameter."""

    totals: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Subject:
    """The model that is checked, `lm`; `windowed`, a small copy with attention windows; `tolerance` of comparisons."""

    def __init__(self, lm: Any, family: Family, windowed: Any, tolerance: float):
        self.lm, self.family, self.windowed, self.tolerance = lm, family, windowed, tolerance
        self._losses: dict[Any, Loss] = {}

    def model(self, lm: Any = None, **latent: Any) -> LatentModel:
        """A student around the model, with the same projection each time."""
        lm = self.lm if lm is None else lm
        lm.set_attn_implementation(NAME)
        settings = LatentConfig(**{"num_tokens": NUM_LATENTS, "num_iterations": 3, **latent})
        last = lm.get_input_embeddings().weight.shape[0]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = LatentModel(lm, self.family, SpecialTokens(last - 3, last - 2, last - 1), settings, True)
        return model.eval()

    @cached_property
    def examples(self) -> list[Encoded]:
        """Random texts of very different lengths, in tokens that the small copy has, too."""
        generator = torch.Generator().manual_seed(0)
        ids = min(lm.get_input_embeddings().weight.shape[0] for lm in (self.lm, self.windowed)) - 3

        def draw(count: int) -> list[int]:
            return torch.randint(0, ids, (count,), generator=generator).tolist()

        cue = draw(3)
        return [
            Encoded(str(row), draw(question), draw(cot), [False] * cot, cue, draw(answer), 0)
            for row, (question, cot, answer) in enumerate(LENGTHS)
        ]

    def batch(self, side: str = "right", rows: Sequence[int] = ROWS) -> dict[str, Tensor]:
        batch = Collator(0, side)([self.examples[row] for row in rows])
        return {name: value.to(self.lm.device) for name, value in batch.items()}

    def same(self, found: Tensor, wanted: Tensor, what: str) -> float:
        """The largest difference in proportion to the largest number; an Unlike if it is above the tolerance."""
        if found.shape != wanted.shape:
            raise Unlike(f"{what}: shape {tuple(found.shape)}, the library's is {tuple(wanted.shape)}")
        if not wanted.numel():
            return 0.0
        gap = float((found.detach() - wanted.detach()).abs().max() / wanted.detach().abs().max().clamp(min=1e-3))
        if not gap <= self.tolerance:
            raise Unlike(f"{what}: off by {gap:.1e}")
        return gap

    def loss(
        self, parts: tuple[tuple[int, ...], ...] = (ROWS,), side: str = "right", packed: bool = True, **latent: Any
    ) -> Loss:
        """The paper's loss of the examples, in batches of the rows `parts`; computed once for the same arguments."""
        key = (parts, side, packed, *latent.items())
        if key not in self._losses:
            self._losses[key] = loss_of(self.model(**latent), [self.batch(side, rows) for rows in parts], packed)
        return self._losses[key]

    def same_loss(self, found: Loss, wanted: Loss, what: str) -> float:
        """The largest gap of all terms and gradients, these in proportion to the largest gradient."""
        gaps = [self.same(found.totals[name], total, f"{what}: loss {name}") for name, total in wanted.totals.items()]
        if found.gradients.keys() != wanted.gradients.keys():
            raise Unlike(f"{what}: gradients reach other weights")
        largest = max(float(grad.abs().max()) for grad in wanted.gradients.values())
        for name, grad in wanted.gradients.items():
            gaps.append(float((found.gradients[name] - grad).abs().max()) / largest)
            if not gaps[-1] <= self.tolerance:
                raise Unlike(f"{what}: gradient of {name} off by {gaps[-1]:.1e}")
        return max(gaps)


def loss_of(model: LatentModel, batches: list[dict[str, Tensor]], packed: bool) -> Loss:
    """The loss of several batches as of one."""
    objective = latent_objective(model, LossConfig(), make_compressor("rkv", lambda_=0.1), packed)
    terms = [term for batch in batches for term in objective(batch).terms]
    counts = {
        name: sum(term.count for term in terms if term.name == name) for name in dict.fromkeys(t.name for t in terms)
    }
    named = {name: weight for name, weight in model.named_parameters() if weight.numel() <= LARGEST}
    grads = torch.autograd.grad(add(terms, counts), list(named.values()), allow_unused=True)
    return Loss(
        {name: torch.stack([term.total for term in terms if term.name == name]).sum() for name in counts},
        {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None},
    )


@contextmanager
def library(model: LatentModel) -> Iterator[Any]:
    """The causal LM with the library's plain attention, which also returns its weights."""
    model.causal_lm.set_attn_implementation("eager")
    try:
        yield model.causal_lm
    finally:
        model.causal_lm.set_attn_implementation(NAME)


def run_questions(model: LatentModel, batch: dict[str, Tensor]) -> tuple[Pass, Tensor, Tensor]:
    """A causal pass over the padded questions, their ids and mask."""
    ids, mask = batch["question"], batch["question_mask"]
    return model.run(model.embed(ids), positions(mask), causal_mask(mask), all_layers=True), ids, mask


@torch.no_grad()
def check_inputs(subject: Subject) -> str:
    """The first layer reads the decoder's inputs times the scale that the row says."""
    model, read = subject.model(), []
    handle = blocks(model)[0].register_forward_pre_hook(
        lambda _, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    ids = subject.batch()["question"]
    embeds, real = model.embed(ids), torch.ones_like(ids, dtype=torch.bool)
    for factor in (1, 2):  # the difference leaves learned positions out
        model.run(factor * embeds, positions(real), causal_mask(real))
    handle.remove()
    subject.same(read[1] - read[0], embeds * model.input_scale, "what the first layer reads of the embeddings")
    return f"embeddings times {model.input_scale:g}"


@torch.no_grad()
def check_cache(subject: Subject) -> str:
    """Captured keys, values and hidden states are those of the library's cache, row by row without padding."""
    model, gaps = subject.model(), []
    out, ids, mask = run_questions(model, subject.batch())
    with library(model):
        for row, real in enumerate(mask):
            cache = DynamicCache()
            plain = model.decoder(ids[row][real][None], past_key_values=cache, use_cache=True)
            if len(cache.layers) != len(out.keys):
                raise Unlike(f"{len(out.keys)} layers were captured, the library's cache has {len(cache.layers)}")
            for i, layer in enumerate(cache.layers):
                for part in ("keys", "values"):
                    own = getattr(out, part)[i][row][:, real]
                    gaps.append(subject.same(own, getattr(layer, part)[0], f"{part} of layer {i}"))
            gaps.append(subject.same(out.hidden[row][real], plain.last_hidden_state[0], "hidden states"))
    return f"keys and values of {len(out.keys)} layers, off by {max(gaps):.0e}"


@torch.no_grad()
def check_attention(subject: Subject) -> str:
    """Captured queries and keys give the library's attention weights."""
    model, batch = subject.model(), subject.batch(rows=[2])
    out, ids, mask = run_questions(model, batch)
    with library(model):
        weights = model.decoder(ids, use_cache=False, output_attentions=True).attentions
    for i, (query, key, window) in enumerate(zip(out.queries, out.keys, model.windows, strict=True)):
        allowed = causal_mask(mask) if window is None else within_window(causal_mask(mask), window)
        own = capped_weights(query, key, allowed, model.scale, model.cap)
        subject.same(own, weights[i], f"attention weights of layer {i}")
    return f"logits times {model.scale:.4g}" + ("" if model.cap is None else f", capped at {model.cap:g}")


@torch.no_grad()
def check_logits(subject: Subject) -> str:
    """The head gives the library's logits."""
    model = subject.model()
    out, ids, _ = run_questions(model, subject.batch(rows=[2]))
    with library(model) as lm:
        gap = subject.same(model.head(out.hidden), lm(ids).logits, "logits")
    return f"off by {gap:.0e}"


@torch.no_grad()
def check_windows(subject: Subject) -> str:
    """A window of 8 tokens, forced on a small copy, limits what the library limits; padding takes no place in it."""
    model = subject.model(subject.windowed)
    for side in ("right", "left"):
        out, ids, mask = run_questions(model, subject.batch(side))
        with library(model):
            for row, real in enumerate(mask):
                plain = model.decoder(ids[row][real][None], use_cache=False).last_hidden_state[0]
                subject.same(out.hidden[row][real], plain, f"hidden states of a window, padding {side}")
    narrow = sum(window is not None for window in model.windows)
    return f"{narrow} of {len(model.windows)} layers with a window of 8" if narrow else "none"


@torch.no_grad()
def check_rotary(subject: Subject) -> str:
    """Keys of a repeated token, turned back, do not know where they stood; without rotation the values know."""
    model = subject.model()
    ids = torch.full((1, 12), 5, device=model.device)
    real = torch.ones_like(ids, dtype=torch.bool)
    out = model.run(model.embed(ids), positions(real), causal_mask(real))
    if not model.family.rotary:
        if float((out.values[0] - out.values[0][:, :, :1]).abs().max()) < 1e-3:
            raise Unlike("values do not know their positions, so keys are rotated, which the row denies")
        return "none: positions are in the hidden states"
    if not rotated_alike(model.config):
        return "layers differ, so rkv.rotary=before and mixtures are refused"
    rotary = model.rotary
    assert rotary is not None
    for i, key in enumerate(out.keys):
        plain = unrotate(key, *rotary.angles(positions(real)))
        if float((plain - plain[:, :, :1]).abs().max() / plain.abs().max()) > max(1e-4, subject.tolerance):
            raise Unlike(f"keys of layer {i} are not what the rotary embedding (half-split) turns")
    return f"{2 * len(rotary.inv_freq)} of {model.kv_shape.head_size} dimensions"


def check_padding(subject: Subject) -> str:
    """Padding to the left, to the right, and each row alone: the same loss and gradients."""
    wanted = subject.loss(tuple((row,) for row in ROWS))
    gaps = [subject.same_loss(subject.loss(side=side), wanted, f"padding {side}") for side in ("left", "right")]
    return f"left = right = alone, off by {max(gaps):.0e}"


def check_packed(subject: Subject) -> str:
    """The packed passes give the loss and gradients of separate passes."""
    gap = subject.same_loss(subject.loss(), subject.loss(packed=False), "packed")
    return f"packed = unpacked, off by {gap:.0e}"


def check_sequential(subject: Subject) -> str:
    """As many rounds as latents are sequential decoding."""
    rounds = subject.loss(num_iterations=NUM_LATENTS)
    gap = subject.same_loss(rounds, subject.loss(method="sequential"), "T = M")
    return f"T = M is sequential decoding, off by {gap:.0e}"


def check_gradient(subject: Subject) -> str:
    """The latents' keys and values of every layer have a gradient in that layer and in the projection."""
    model = subject.model()
    student = run_student(model, subject.batch(rows=[0]), PassOutputs(teacher=False, student=True, kv=True, codi=False))
    for i, (layer, pair) in enumerate(zip(blocks(model), zip(student.keys, student.values, strict=True), strict=True)):
        for name, part in zip(("keys", "values"), pair, strict=True):
            own, shared = list(layer.parameters()), list(model.project.parameters())
            grads = torch.autograd.grad(part.square().sum(), own + shared, retain_graph=True, allow_unused=True)
            for place, reached in (("the layer", grads[: len(own)]), ("the projection", grads[len(own) :])):
                if not any(grad is not None and bool(grad.any()) for grad in reached):
                    raise Unlike(f"the gradient of the {name} of layer {i} does not reach {place}")
    return f"through keys and values of {len(student.keys)} layers"


def check_layers(subject: Subject) -> str:
    """The names in the row are those of the model: the token embedding, and every linear layer."""
    model = subject.model()
    family, embedding = subject.family, getattr(model.decoder, subject.family.embedding, None)
    if embedding is not model.causal_lm.get_input_embeddings():
        raise Unlike(f"the token embedding is not {family.decoder}.{family.embedding}")
    inside = [(name.rsplit(".", 1)[-1], part) for block in blocks(model) for name, part in block.named_modules()]
    linear = [(name, part) for name, part in inside if isinstance(part, (torch.nn.Linear, Conv1D))]
    names = {name for name, _ in linear}
    if names != set(family.linear):
        raise Unlike(
            f"the linear layers are {', '.join(sorted(names))}; the row says {', '.join(sorted(family.linear))}"
        )
    if any(isinstance(part, Conv1D) != family.conv1d for _, part in linear):
        raise Unlike("linear layers keep their weight transposed, or the row says so and they do not")
    return ", ".join(family.linear)


@torch.no_grad()
def check_lora(subject: Subject) -> str:
    """Fresh adapters and trainable token rows change nothing, and every layer has them."""
    model = subject.model(copy.deepcopy(subject.windowed))
    before, _, _ = run_questions(model, subject.batch())
    special = LoraConfig(r=2, alpha=4, dropout=0.0)
    model.backbone = add_lora(model.causal_lm, subject.family, model.special, special)
    after, _, _ = run_questions(model.eval(), subject.batch())
    subject.same(after.hidden, before.hidden, "hidden states under fresh adapters")
    adapters = sum("lora_A" in name for name in model.trained())
    if adapters % model.kv_shape.num_layers:
        raise Unlike(f"{adapters} adapters in {model.kv_shape.num_layers} layers: some layers lack them")
    return f"{adapters // model.kv_shape.num_layers} adapters in each layer"


@torch.no_grad()
def check_generation(subject: Subject) -> str:
    """The library generates the same tokens, from the text and from the latents as embeddings."""
    model = subject.model()
    batch, cue = subject.batch("left", rows=[1, 2]), subject.examples[0].cue
    question, mask = batch["question"], batch["question_mask"]
    latents, twin = think(model, question, mask), library_twin(model)
    twin.generation_config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    own = {mode: generate(model, question, mask, cue, NO_TOKEN, NEW_TOKENS, mode) for mode in ("direct", "latent")}
    special = model.special
    for row, real in enumerate(mask):
        for mode, thought in (("direct", latents[row : row + 1, :0]), ("latent", latents[row : row + 1])):
            before = model.embed(torch.tensor([[*question[row][real].tolist(), special.bot]], device=model.device))
            after = model.embed(torch.tensor([[special.eot, *cue]], device=model.device))
            embeds = torch.cat([before, thought, after], dim=1)
            wanted = twin.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(embeds[..., 0]).long())[
                0
            ].tolist()
            if own[mode][row].tokens != wanted:
                agree = sum(a == b for a, b in zip(own[mode][row].tokens, wanted, strict=True))
                raise Unlike(f"{mode}: the library writes other tokens ({agree} of {NEW_TOKENS} agree)")
    return f"{2 * len(mask)} answers of {NEW_TOKENS} tokens, token for token"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "cache": check_cache,
    "layers": check_layers,
    "inputs": check_inputs,
    "attention": check_attention,
    "logits": check_logits,
    "windows": check_windows,
    "rotary": check_rotary,
    "lora": check_lora,
    "padding": check_padding,
    "packed": check_packed,
    "sequential": check_sequential,
    "gradient": check_gradient,
    "generation": check_generation,
}


def blocks(model: LatentModel) -> Any:
    """The decoder's layers."""
    count = model.kv_shape.num_layers
    lists = [part for part in model.decoder.children() if isinstance(part, torch.nn.ModuleList) and len(part) == count]
    if not lists:
        raise Unlike(f"the decoder has no list of {count} layers")
    return lists[0]

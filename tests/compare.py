"""What the tests of the whole loss share: measuring terms and gradients, taking batches apart, loading by_hand.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import zoo
from kava.backbone.model import LatentModel
from kava.compress import Compressor, make_compressor
from kava.config import GeneratorConfig, LossConfig
from kava.data.generator import Generator
from kava.evaluation.score import score
from kava.infer.student import Student
from kava.losses import Term
from kava.objective.make import latent_objective
from kava.objective.objective import Objective
from zoo_tokenizers import byte_level

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
UNEVEN = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 4, 1))  # question, CoT, answer; with M = 4: N_C > M, < M, 0, = M
SEGMENTS = {"question": (), "cot": ("cot_result",), "tail": ("tail_answer",)}  # with the masks that go along
TERMS = ("ce_student", "ce_teacher", "codi", "kv")

Measured = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]


def load_by_hand() -> ModuleType:
    """examples/by_hand.py as a module."""
    if "by_hand" not in sys.modules:
        path = Path(__file__).parent.parent / "examples" / "by_hand.py"
        spec = importlib.util.spec_from_file_location("by_hand", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["by_hand"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["by_hand"]


def objective(
    model: LatentModel, packed: bool = True, compressor: Compressor | None = None, rotary: str = "after", **loss: object
) -> Objective:
    """The paper's loss around a model; `loss` overrides LossConfig."""
    settings = LossConfig(use_projection=not isinstance(model.project, torch.nn.Identity), **loss)
    return latent_objective(model, settings, compressor or make_compressor("rkv", lambda_=0.1), packed, rotary)


def gradients(value: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradient of one number by parameter, 0 where it does not reach; the graph is kept."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not value.requires_grad:
        return {name: torch.zeros_like(weight) for name, weight in named.items()}
    found = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(weight) if grad is None else grad
        for (name, weight), grad in zip(named.items(), found, strict=True)
    }


def measure(kind: Objective, batch: Mapping[str, Tensor], by_term: bool = False) -> Measured:
    """Each term's mean, and the gradient of the weighted loss (of every single term: by_term)."""
    return measure_sums(kind, [batch], by_term)


def measure_sums(kind: Objective, batches: Sequence[Mapping[str, Tensor]], by_term: bool = False) -> Measured:
    """The same over several batches: sums of sums over sums of counts."""
    found = [term for batch in batches for term in kind(batch).terms]
    values, weights = {}, {term.name: term.weight for term in found}
    for name in dict.fromkeys(term.name for term in found):
        mine = [term for term in found if term.name == name]
        total = torch.stack([term.total for term in mine]).sum()
        values[name] = Term(name, total, sum(term.count for term in mine)).value()
    loss = torch.stack([weights[name] * value for name, value in values.items()]).sum()
    return measured(values, loss, kind.model, by_term)


def measured(values: Mapping[str, Tensor], loss: Tensor, model: torch.nn.Module, by_term: bool) -> Measured:
    of = values if by_term else {"loss": loss}
    return (
        {name: value.detach() for name, value in values.items()},
        {name: gradients(value, model) for name, value in of.items()},
    )


def assert_same(found: Measured, wanted: Measured, tolerance: float) -> None:
    """Every term, and every gradient in proportion to the largest entry of that loss's gradient."""
    assert found[0].keys() == wanted[0].keys()
    for name, value in wanted[0].items():
        gap = float((found[0][name] - value).abs())
        assert gap <= tolerance * max(1.0, float(value.abs())), f"{name}: {float(found[0][name])}, not {float(value)}"
    assert found[1].keys() == wanted[1].keys()
    for name, grads in wanted[1].items():
        largest = max(1.0, *(float(grad.abs().max()) for grad in grads.values()))
        for weight, grad in grads.items():
            gap = float((found[1][name][weight] - grad).abs().max())
            assert gap <= tolerance * largest, f"gradient of {name} at {weight} is off by {gap:.3g}"


def take(batch: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Some rows of a right-padded batch, as they would have been collated without the others."""
    chosen = {name: value[list(rows)] for name, value in batch.items()}
    for name, others in SEGMENTS.items():
        width = int(chosen[f"{name}_mask"].sum(1).max())
        for part in (name, f"{name}_mask", *others):
            chosen[part] = chosen[part][:, :width]
    return chosen


def samples(batch: Mapping[str, Tensor]) -> list[Any]:
    """The rows as by_hand's samples, without any padding."""
    found = []
    for row in range(len(batch["question"])):
        question, cot, tail = (batch[name][row][batch[f"{name}_mask"][row]].tolist() for name in SEGMENTS)
        answer = batch["tail"][row][batch["tail_answer"][row]].tolist()
        cue = tail[: len(tail) - len(answer) - 1]
        found.append(load_by_hand().Sample(question, cot, cue, answer, tail[-1]))
    return found


def measure_by_hand(model: LatentModel, batch: Mapping[str, Tensor], by_term: bool = False) -> Measured:
    """The same measurements by examples/by_hand.py, on the family's own sdpa attention and cache."""
    special, latent = model.special, model.latent
    settings = load_by_hand().Settings(
        (special.bot, special.latent, special.eot), latent.num_tokens, latent.num_iterations
    )
    with plain_attention(model) as lm:
        terms = load_by_hand().by_hand(lm, model.project, samples(batch), settings)
        return measured({name: terms[name] for name in TERMS}, terms["loss"], model, by_term)


@contextmanager
def plain_attention(model: LatentModel) -> Iterator[Any]:
    """The causal LM with the attention that transformers would give it."""
    model.causal_lm.set_attn_implementation("sdpa")
    try:
        yield model.causal_lm
    finally:
        model.causal_lm.set_attn_implementation("kava")


def tiny_base(folder: Path, tied: bool = False, seed: int = 0, tokenizer: Any = None, **config: object) -> Path:
    """A random Llama and a tokenizer as an ordinary transformers folder."""
    tokenizer = tokenizer or byte_level()
    torch.manual_seed(seed)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), intermediate_size=40, tie_word_embeddings=tied, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **(shape | config),
        )
    )  # fmt: skip
    for weight in lm.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def facts(folder: str | Path, device: str = "cpu") -> dict[str, Any]:
    """What a student's folder says and does: names, loss terms, answers, accuracy. For comparing across processes."""
    return facts_of(Student.from_pretrained(folder, device))


def facts_of(student: Student) -> dict[str, Any]:
    student.model.eval()
    examples = Generator("chains", GeneratorConfig(train_size=1, val_size=1, test_size=6)).split("test")
    terms = objective(student.model, alpha2_kv=1.0)(zoo.batch(UNEVEN)).terms
    return {
        "trained": sorted(student.model.trained()),
        "terms": {term.name: float(term.total.detach()).hex() for term in terms},
        "answers": [answer.text for answer in student.answer([example.question for example in examples])],
        "score": score(student, examples, "latent"),
    }

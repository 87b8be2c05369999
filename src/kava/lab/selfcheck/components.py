"""The components of `kava smoke` that need torch but no training; each says in a few words what was seen."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kava.backbone.families import FAMILIES
from kava.backbone.load import SHIPPED, build_model, load_tokenizer
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.backbone.tokens import NAMES, add_special_tokens, make_room
from kava.compress import COMPRESSORS, SHUFFLES, Samples, importance, make_compressor
from kava.config import GeneratorConfig, LatentConfig, LossConfig, ModelConfig, load_recipe
from kava.data.collate import Collator
from kava.data.encode import QUESTION_END, Encoder
from kava.data.generator import BUILT_IN, FORMS, Generator
from kava.evaluation.eval_sets import load_eval_set
from kava.evaluation.score import predict, summary
from kava.infer.generate import think
from kava.infer.student import Student
from kava.lab.bench.decode import check, differences, prepare
from kava.lab.bench.reference import library_twin, random_model
from kava.lab.selfcheck.context import Place, expect, nearness
from kava.losses import add
from kava.objective.latent import LatentObjective

CLOSE = 1e-4  # float32, models of a few layers


def try_data(_: Place) -> str:
    encoder = Encoder(_tokenizer(), drop_last_step=False)
    for name in BUILT_IN:
        generator = Generator(name, GeneratorConfig(train_size=40, val_size=10, test_size=10), 0)
        splits = {split: generator.split(split) for split in ("train", "validation", "test")}
        questions = [{example.question for example in found} for found in splits.values()]
        expect(not any(a & b for a in questions for b in questions if a is not b), f"{name}: splits share questions")
        encoder.cot_type = FORMS[name][2]
        for example in splits["test"]:
            one = encoder(example)
            text = encoder.tokenizer.decode(one.question)
            expect(text == example.question + QUESTION_END, f"{name}: {example.question!r} decodes to {text!r}")
            marked = "".join(encoder.tokenizer.decode([t]) for t, r in zip(one.cot, one.result, strict=True) if r)
            expect(marked.strip().endswith(example.answer), f"{name}: {example.steps} has its results at {marked!r}")
    return f"{len(BUILT_IN)} built-in sets: splits disjoint, text and step results found again in the ids"


def try_shipped(place: Place) -> str:
    recipe = load_recipe("debug")
    model, tokenizer = build_model(recipe)
    student = Student(model.to(place.device), tokenizer, recipe)
    found = summary(predict(student, load_eval_set(recipe, "chains", 16).examples, "cot") or [])
    expect(found["correct"] >= 14, f"the shipped teacher solves {found['correct']} of 16 problems")
    return f"{model.family.name} loaded; its chain of thought solves {found['correct']} of 16 problems"


def try_families(place: Place) -> str:
    ids, mask = _rows(place)
    worst = 0.0
    with torch.inference_mode():
        for name in FAMILIES:
            model = _model(place, name)
            mine = model.run(model.embed(ids), positions(mask), causal_mask(mask)).hidden
            twin = getattr(library_twin(model), model.family.decoder)
            theirs = twin(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            gap = float((mine - theirs)[mask].abs().max() / theirs.abs().max())
            expect(gap < CLOSE, f"{name}: hidden states differ from the library's by {gap:.1e}")
            worst = max(worst, gap)
    return f"{', '.join(FAMILIES)}: forward as the library's own, {nearness(worst)}"


def try_special_tokens(place: Place) -> str:
    tokenizer = _tokenizer()
    special = add_special_tokens(tokenizer)
    expect(add_special_tokens(tokenizer) == special, "adding the special tokens twice changes their ids")
    ids = tokenizer("".join(NAMES), add_special_tokens=False)["input_ids"]
    expect(list(ids) == special.ids, f"{NAMES} are read as {list(ids)}, not {special.ids}")
    model = _model(place)
    before = model.embed(torch.arange(8, device=place.device)).clone()
    make_room(model.causal_lm, type(special)(*(i + 50 for i in special.ids)))
    table = model.causal_lm.get_input_embeddings().weight
    expect(len(table) > max(special.ids) + 50 and bool(table.isfinite().all()), "the embedding has no room for them")
    expect(torch.equal(table[:8], before), "making room changed other rows")
    return f"{' '.join(NAMES)}: one id each, rows of their own, other rows untouched"


def try_compressors(place: Place) -> str:
    draw = torch.Generator().manual_seed(0)
    batch, heads, columns, width, keep = 3, 2, 9, 8, 4
    mask = (torch.arange(columns) < torch.tensor([[9], [2], [5]])).to(place.device)
    queries, keys, values = (torch.randn(batch, n, columns, width, generator=draw).to(place.device) for n in (4, 2, 2))
    samples = Samples(torch.arange(batch), mask & (torch.arange(columns, device=place.device) % 2 == 0), 1, 0)
    weight = importance(queries, keys, mask, mask, width**-0.5)
    for method in COMPRESSORS:
        for shuffle in ("none", *SHUFFLES):
            name = f"{method}, shuffle {shuffle}"
            compressor = make_compressor(method, shuffle)
            out = compressor(keys, values, mask, weight, keep, samples=samples)
            shift = 1 if shuffle == "examples" else 0  # the neighbour's entries
            key, real = keys.roll(shift, 0), mask.roll(shift, 0)
            expect(out.keys.shape == (batch, heads, keep, width), f"{name}: shape {tuple(out.keys.shape)}")
            counts = compressor.count(mask, keep, samples)[:, None].expand(-1, heads)
            expect(torch.equal(out.kept.sum(-1), counts), f"{name}: keeps {out.kept.sum(-1).tolist()} entries")
            at = real[:, None].expand(-1, heads, -1).gather(2, out.index)
            expect(bool(at[out.kept].all()), f"{name}: keeps padding")
            expect(not bool(out.keys[~out.kept].any()), f"{name}: an empty slot is not zero")
            if method != "full":  # which makes entries between its neighbours
                taken = key.gather(2, out.index[..., None].expand_as(out.keys))
                expect(torch.equal(taken[out.kept], out.keys[out.kept]), f"{name}: keys are not those of their index")
            if shuffle != "time":
                later = (out.index.diff(dim=-1) > 0) | ~out.kept[..., 1:]
                expect(bool(later.all()), f"{name}: not in time order")
    return f"{len(COMPRESSORS)} compressors, each plain and {len(SHUFFLES)} times shuffled, on random keys and values"


def try_latents(place: Place) -> str:
    model = _model(place)
    num_tokens = model.latent.num_tokens
    ids, mask = _rows(place)

    def thought(**settings: Any) -> Tensor:
        model.latent = LatentConfig(num_tokens=num_tokens, **settings)
        return think(model, ids, mask)

    wanted = thought(method="sequential")
    gaps = [float((thought(num_iterations=num_tokens + more) - wanted).abs().max()) for more in (0, 2)]
    expect(max(gaps) < CLOSE, f"Jacobi with T >= M differs from sequential latents by {max(gaps):.1e}")
    first = float((thought(num_iterations=1) - wanted).abs().max())
    expect(first > CLOSE, "one Jacobi round already gives what M sequential steps give")
    return f"Jacobi with T >= M = {num_tokens} gives the sequential latents, {nearness(max(gaps))}; T = 1 does not"


def try_losses(place: Place) -> str:
    model = _model(place).train()
    terms = _objective(model)(_batch(place)).terms
    for term in terms:
        total = float(term.total.detach())
        expect(0 < total < float("inf"), f"{term.name} is {total}")
        expect(term.total.requires_grad, f"{term.name} has no gradient")
    add(terms).backward()
    trained = model.trained()
    dead = [name for name, weight in trained.items() if weight.grad is None or not bool(weight.grad.any())]
    expect(not dead, f"no gradient reaches {', '.join(dead)}")
    return f"{', '.join(term.name for term in terms)} finite; gradient in all {len(trained)} weights"


def try_packed(place: Place) -> str:
    totals = []
    for packed in (True, False):
        model = _model(place)
        terms = _objective(model, packed)(_batch(place)).terms
        add(terms).backward()
        slope = torch.stack([weight.grad.norm() for weight in model.trained().values() if weight.grad is not None])
        totals.append(torch.cat([torch.stack([term.value().detach() for term in terms]), slope]))
    gap = float(((totals[0] - totals[1]).abs() / totals[1].abs().clamp(min=CLOSE)).max())
    expect(gap < 10 * CLOSE, f"losses or gradients of the packed and the separate passes differ by {gap:.1e}")
    return f"packed and separate passes: the same losses and gradients, {nearness(gap)}"


def try_decoding(place: Place) -> str:
    prompts = ("3+4*2-1?", "a=3;b=a+4;c=b*2;c?", "What is the result?")
    tokens = 0
    for name in FAMILIES:
        found, _ = check(prepare(_model(place, name), _tokenizer(), prompts, 12))
        lines = differences(found, _tokenizer())
        expect(not lines, f"{name}: " + "; ".join(lines))
        tokens += sum(map(len, found["naive", 1]))
    return f"naive, cached and library write the same {tokens} tokens, one by one and in a batch, in every family"


@cache
def _tokenizer() -> Any:
    return load_tokenizer(SHIPPED["kava:embedded"], ModelConfig())


def _model(place: Place, family: str = "llama") -> LatentModel:
    """A small random model with room for the shipped tokenizer's text; its latents: M 4, T 2."""
    latent = LatentConfig(num_tokens=4, num_iterations=2)
    return random_model(2, 32, 4, 2, len(_tokenizer()), latent, family, std=0.2).to(place.device).eval()


def _batch(place: Place) -> dict[str, Tensor]:
    """Problems of one to three steps, so that every segment is padded."""
    encoder = Encoder(_tokenizer(), drop_last_step=False)
    examples = Generator("chains", GeneratorConfig(test_size=6), 0).split("test")
    made = Collator(encoder.tokenizer.pad_token_id)([encoder(example) for example in examples])
    return {name: part.to(place.device) for name, part in made.items()}


def _rows(place: Place) -> tuple[Tensor, Tensor]:
    batch = _batch(place)
    return batch["question"], batch["question_mask"]


def _objective(model: LatentModel, packed: bool = True) -> LatentObjective:
    return LatentObjective(model, LossConfig(), make_compressor("rkv", lambda_=0.1), packed)


COMPONENTS = {
    "data": try_data,
    "shipped": try_shipped,
    "families": try_families,
    "special_tokens": try_special_tokens,
    "compressors": try_compressors,
    "latents": try_latents,
    "losses": try_losses,
    "packed": try_packed,
    "decoding": try_decoding,
}

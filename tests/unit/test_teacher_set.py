"""Teachers of a mixture: one text in everybody's tokens, keys before the rotary embedding, any family, weights that rest."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM, DynamicCache

import many
from kava.align.tokens import iou_matrix, spans_of
from kava.backbone.foreign import Foreign
from kava.backbone.load import load_foreign
from kava.config import ModelConfig, Recipe, TeacherSpec
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.data.load import ExampleStream
from kava.data.teacher_texts import TeachersCollator, texts_of, view
from kava.errors import ConfigError, DataError, KavaError, ModelError
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.offloaded import OffloadedTeacher, _on_device
from kava.teachers.teacher_set import TeacherSet, live, load_teacher_set

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
OTHERS = ("opt", "neox", "mistral")
PLAIN = TeacherWants(rotary=False, question="mean")


@cache
def loaded(*teachers: str, more: tuple[str, ...] = ()) -> TeacherSet:
    return load_teacher_set(many.recipe(*teachers, more=more), many.tokenizer("small"), CPU)


def student_rows(found: TeacherSet) -> list[Encoded]:
    return found.tokenizations.student.encode_batch(many.examples())


def collator(found: TeacherSet, side: str = "right", **own: Any) -> TeachersCollator:
    return TeachersCollator(Collator(0, side), found.tokenizations, texts_of(many.examples()), **own)


def some(found: TeacherSet) -> list[Encoded]:
    """Chains of several lengths, and the texts in two languages."""
    rows = student_rows(found)
    return [rows[0], rows[-3], rows[7], rows[-1], rows[-2]]


# -- one text in everybody's tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_teacher_gets_its_own_batch_and_the_matrix(side: str) -> None:
    found = loaded(many.entry("llama", prompt="cot"), "qwen3", "gpt2")
    rows = some(found)
    batch = collator(found, side)(rows)
    plain = Collator(0, side)(rows)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    texts = texts_of(many.examples())
    for i, tokenization in enumerate(found.tokenizations.each):
        heard = [replace(texts[row.id]) for row in rows]
        if i == 0:
            heard = [replace(one, question="Think step by step.\n" + one.question) for one in heard]
        wanted = Collator(tokenization.pad, side)(tokenization.encoder.encode_batch(heard))
        own = view(batch, i)
        assert own.keys() == wanted.keys()
        assert all(torch.equal(own[name], wanted[name]) for name in wanted)
        iou = batch[f"t{i}.iou"]
        assert iou.dtype == torch.float32
        for b, row in enumerate(rows):
            text = " ".join(tokenization.encoder.steps(texts[row.id]))
            spans = [
                spans_of(text, encoder.tokenizer) for encoder in (found.tokenizations.student, tokenization.encoder)
            ]
            block = iou[b][plain["cot_mask"][b]][:, own["cot_mask"][b]]
            assert torch.equal(block, iou_matrix(*spans))
            assert float(iou[b].sum()) == pytest.approx(float(block.sum()))  # nothing at padding
    bare = collator(loaded("llama"), side)(rows)
    assert bool((batch["t0.question_mask"].sum(1) > bare["t0.question_mask"].sum(1)).all())


def test_truncate_pairs_tokens_by_number() -> None:
    found = loaded("llama", more=("mixture.time=truncate",))
    rows = some(found)
    batch = collator(found)(rows)
    for b in range(len(rows)):
        mine, theirs = int(batch["cot_mask"][b].sum()), int(batch["t0.cot_mask"][b].sum())
        wanted = torch.zeros_like(batch["t0.iou"][b])
        for j in range(min(mine, theirs)):
            wanted[j, j] = 1
        assert torch.equal(batch["t0.iou"][b], wanted)


def test_memory_changes_nothing_and_is_bounded() -> None:
    found = loaded("llama", "gpt2")
    rows = student_rows(found)
    small, large = collator(found, room=2000), collator(found)
    for start in (0, 20, 0, 40, 10):
        a, b = small(rows[start : start + 6]), large(rows[start : start + 6])
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert small._cached == sum(read.size for read in small._cache.values()) <= 2000
    again = pickle.loads(pickle.dumps(large))
    assert not again._cache
    assert torch.equal(again(rows[:3])["t1.iou"], large(rows[:3])["t1.iou"])


def test_coverage_is_counted_logged_and_has_a_floor(caplog: pytest.LogCaptureFixture) -> None:
    found = loaded("llama", "gpt2")
    high = TeacherSet(found.names, found.teachers, replace(found.tokenizations, threshold=0.9))
    rows, collate = student_rows(found), collator(high)
    with caplog.at_level(logging.INFO):
        shares = collate.check(rows, 0.0)
    assert f"teacher llama matches {100 * shares['llama'].share:.1f} %" in caplog.text
    for i, name in enumerate(found.names):
        real = hit = 0
        for row in rows:
            batch = collate([row])
            real += len(row.cot)
            hit += sum(bool((line > 0).any()) for line in batch[f"t{i}.iou"][0])
        assert shares[name].share == pytest.approx(hit / real)
        assert 0 < hit < real
    (worst, share), *_ = shares["llama"].worst
    with pytest.raises(DataError, match=f"teacher llama matches .* {worst} .{100 * share:.0f} %") as error:
        collate.check(rows, 0.999)
    assert "mixture.iou_threshold" in str(error.value.hint)
    empty = [replace(row, cot=[], result=[]) for row in rows[:1]]
    assert TeachersCollator(Collator(0), found.tokenizations, {}).coverage([])["llama"].share is None
    with pytest.raises(DataError, match="does not give the student's tokens"):
        collate(empty)


def test_texts_that_are_not_there() -> None:
    found = loaded("llama")
    rows = student_rows(found)
    with pytest.raises(DataError, match="text of example chains/train/0 is not there"):
        TeachersCollator(Collator(0), found.tokenizations, {})(rows[:1])
    example = many.examples()[0]
    with pytest.raises(DataError, match="two different examples have the id"):
        texts_of([example, replace(example, answer="0")])
    with pytest.raises(DataError, match="a stream cannot be read by several teachers"):
        texts_of(ExampleStream.__new__(ExampleStream))


def test_a_text_beyond_the_last_position_is_refused_before_the_first_step() -> None:
    found = loaded("gpt2", "llama")
    assert [tokenization.max_positions for tokenization in found.tokenizations.each] == [512, None]
    rows = student_rows(found)
    lengths = [len(one) for one in found.tokenizations.each[0].encoder.encode_batch(many.examples())]
    for limit in (max(lengths), max(lengths) - 1, sorted(lengths)[-4]):
        tokenizations = replace(found.tokenizations, each=(replace(found.tokenizations.each[0], max_positions=limit),))
        collate = TeachersCollator(Collator(0), tokenizations, texts_of(many.examples()))
        beyond = sum(length > limit for length in lengths)
        if not beyond:
            collate.check(rows, 0.0)
            continue
        with pytest.raises(DataError, match=f"{beyond} examples need up to {max(lengths)} positions of teacher gpt2"):
            collate.check(rows, 0.0)


# -- what a teacher shows --------------------------------------------------------------------------------------------


def alone(kind: str, template: str, row: Encoded) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """One text, no padding, by transformers alone: keys before the rotary embedding where the projection makes them
    (and its norm), values, both at the CoT; and the mean values of the question."""
    lm, _ = many.build(kind)
    before: dict[int, Tensor] = {}
    names = {"neox": "query_key_value", "gpt2": "", "opt": ""}
    wanted = names.get(kind, "k_norm" if kind == "qwen3" else "k_proj")
    blocks = [module for name, module in lm.named_modules() if wanted and name.endswith(wanted)]
    for layer, module in enumerate(blocks):
        module.register_forward_hook(lambda _m, _i, out, layer=layer: before.update({layer: out.detach()}))
    text = texts_of(many.examples())[row.id]
    found = (
        loaded(kind)
        .tokenizations.each[0]
        .encoder(replace(text, question=template.replace("{question}", text.question)))
    )
    first, last = len(found.question), len(found.question) + len(found.cot)
    ids = torch.tensor([[*found.question, *found.cot, *found.cue, *found.answer, found.eos]])
    with torch.no_grad():
        cache = lm(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    heads, size = layers[0][0].shape[0], layers[0][0].shape[2]
    keys = []
    for layer, (cached, _) in enumerate(layers):
        key = cached
        if layer in before:
            out = before[layer][0]
            if kind == "neox":  # query, key and value of each head stand together
                key = out.view(-1, heads, 3, size)[:, :, 1].transpose(0, 1)
            else:
                key = out.view(-1, heads, size).transpose(0, 1)
        keys.append(key[:, first:last])
    values = [value[:, first:last] for _, value in layers]
    asked = torch.stack([value[:, :first].mean(1).flatten() for _, value in layers])
    return keys, values, asked


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [*FAMILIES, *OTHERS])
def test_keys_before_the_rotary_embedding_values_and_question(kind: str, side: str) -> None:
    prompt = "Answer in one word: {question} Now."
    found = loaded(many.entry(kind, prompt=prompt))
    rows = some(found)
    batch = collator(found, side)(rows)
    shown = found(batch, PLAIN)[0]
    assert not any(key.requires_grad for key in shown.keys)
    for b, row in enumerate(rows):
        keys, values, asked = alone(kind, prompt, row)
        mask = batch["t0.cot_mask"][b]
        for layer in range(found.shapes[0].num_layers):
            torch.testing.assert_close(shown.keys[layer][b][:, mask], keys[layer], rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(shown.values[layer][b][:, mask], values[layer], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(shown.question[b], asked, rtol=1e-4, atol=2e-5)


def test_rotary_is_left_on_where_it_is_wanted() -> None:
    found = loaded("llama", "neox", "gpt2")
    batch = collator(found)(some(found))
    with_it, without = found(batch, TeacherWants()), found(batch, TeacherWants(rotary=False))
    assert [teacher.rotary is None for teacher in found.teachers] == [False, False, True]
    for i, rotary in enumerate(teacher.rotary for teacher in found.teachers):
        a, b = with_it[i].keys[1], without[i].keys[1]
        assert with_it[i].question is None
        if rotary is None:
            assert torch.equal(a, b)
        else:
            assert not torch.allclose(a, b, atol=0.1)
            width = 2 * len(rotary.inv_freq)
            assert torch.equal(a[..., width:], b[..., width:])  # neox turns a quarter
            torch.testing.assert_close(a.norm(dim=-1), b.norm(dim=-1))


def test_the_same_checkpoint_is_loaded_once_and_reads_with_two_prompts() -> None:
    found = loaded(many.entry("llama", name="a"), many.entry("llama", name="b", prompt="direct"), "twin")
    assert found.teachers[0] is found.teachers[1]
    assert found.teachers[0] is not found.teachers[2]
    assert found.tokenizations.each[0].encoder is found.tokenizations.each[1].encoder
    batch = collator(found)(some(found))
    assert torch.equal(batch["t0.iou"], batch["t1.iou"])
    a, b, c = found(batch, PLAIN)
    assert torch.equal(a.keys[0], c.keys[0])
    assert torch.allclose(a.keys[0], b.keys[0], atol=1e-5)  # the first layer has not looked at the prompt yet
    assert not torch.allclose(a.keys[2], b.keys[2], atol=1e-2)


def test_a_frozen_copy_of_the_students_base() -> None:
    found = loaded("{prompt: cot}")
    assert found.names == ("own",)
    batch = collator(found)(some(found))
    assert torch.equal(batch["t0.cot"], batch["cot"])
    eye = torch.eye(batch["cot"].shape[1]) * batch["cot_mask"][..., None]
    assert torch.equal(batch["t0.iou"], eye)


@pytest.mark.parametrize("method", ["ntk", "linear", "dynamic"])
def test_a_teacher_may_read_with_a_stretched_rotary_embedding(method: str) -> None:
    """Layer 0 knows no position before the rotary embedding, so un-rotating with what it read with brings it back."""
    plain, batch = loaded("llama", "gpt2"), collator(loaded("llama", "gpt2"))(some(loaded("llama")))
    spec = TeacherSpec(model=many.folder("llama"))
    student = ModelConfig(name=many.student_folder())
    wide = load_foreign(spec, student, CPU, method, 4 * 512)
    teacher = live(wide)
    wanted, found = plain(batch, PLAIN)[0], teacher(view(batch, 0), PLAIN)
    assert not torch.allclose(teacher.rotary.inv_freq, plain.teachers[0].rotary.inv_freq)
    torch.testing.assert_close(found.keys[0], wanted.keys[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.keys[2], wanted.keys[2], atol=1e-3)
    short = live(load_foreign(spec, student, CPU, method, 512))
    assert torch.equal(short.rotary.inv_freq, plain.teachers[0].rotary.inv_freq)
    with pytest.raises(ConfigError, match="no teacher rotates its keys"):
        load_teacher_set(many.recipe("gpt2", more=(f"mixture.rope={method}",)), many.tokenizer("small"), CPU)


# -- refusals --------------------------------------------------------------------------------------------------------


def refused(kind: type[KavaError], message: str, *teachers: str) -> KavaError:
    with pytest.raises(kind, match=message) as error:
        load_teacher_set(many.recipe(*teachers), many.tokenizer("small"), CPU)
    return error.value


def test_models_that_cannot_teach_are_refused_by_name(tmp_path: Path) -> None:
    assert "causal language model" in str(refused(ModelError, "bert leaves no cache", "bert").hint)
    assert "causal language model" in str(refused(ModelError, "mamba .*keeps no keys and values", "mamba").hint)
    assert "kava:embedded" in str(refused(ModelError, "student's start", "{name: blank, model: 'kava:blank'}").hint)
    code = tmp_path / "own"
    code.mkdir()
    many.build("llama")[1].save_pretrained(code)
    where = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (code / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": where}))
    (code / "own.py").write_text("raise SystemExit('this must not run')\n")
    error = refused(ModelError, "comes with code of its own", f"{{name: own, model: '{code}'}}")
    assert "trust_remote_code" in str(error.hint)


def test_a_model_that_sees_later_tokens_or_hides_its_positions() -> None:
    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    turned = CohereForCausalLM(CohereConfig(**small)).eval()
    with pytest.raises(ModelError, match="carry positions in a way that cannot be undone"):
        Foreign(turned, "interleaved")
    lm, _ = many.build("opt")
    forward = lm.base_model.forward

    def both_ways(past_key_values: Any, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        mixed = (input_ids + input_ids.sum(1, keepdim=True)) % 40  # every token depends on all of them
        return forward(input_ids=mixed, past_key_values=past_key_values, use_cache=use_cache)

    lm.base_model.forward = both_ways
    with pytest.raises(ModelError, match="looks at tokens that come later"):
        Foreign(lm, "an encoder")


def test_what_only_known_families_show() -> None:
    found = loaded("opt", "llama")
    batch = collator(found)(some(found))
    with pytest.raises(ConfigError, match=r"opt \(family opt\) .* gives no importance"):
        found(batch, TeacherWants(importance=True))
    with pytest.raises(ConfigError, match="no hidden states"):
        found(batch, TeacherWants(cue=True))
    shown = loaded("llama")(collator(loaded("llama"))(some(found)), TeacherWants(importance=True, rotary=False))[0]
    rotated = loaded("llama")(collator(loaded("llama"))(some(found)), TeacherWants(importance=True))[0]
    assert all(torch.equal(a, b) for a, b in zip(shown.importance, rotated.importance, strict=True))


# -- weights that rest -----------------------------------------------------------------------------------------------


def same(a: TeacherKV, b: TeacherKV) -> None:
    for mine, theirs in zip([*a.keys, *a.values, a.question], [*b.keys, *b.values, b.question], strict=True):
        assert torch.equal(mine, theirs)


def test_one_at_a_time_is_together_bit_for_bit_and_holds_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = ("llama", "gpt2", "opt", many.entry("llama", name="again", prompt="cot"))
    together = loaded(*teachers)
    from kava.teachers import teacher_set as room

    alive: list[weakref.ref[Any]] = []
    most = 0
    real = room.load_live

    def counted(*given: Any) -> Any:
        nonlocal most
        teacher = real(*given)
        alive.append(weakref.ref(teacher.model))
        most = max(most, sum(one() is not None for one in alive))
        return teacher

    monkeypatch.setattr(room, "load_live", counted)
    apart = load_teacher_set(
        many.recipe(*teachers, more=("mixture.residence=one_at_a_time",)), many.tokenizer("small"), CPU
    )
    assert len(alive) == 3
    assert isinstance(apart.teachers[0], OffloadedTeacher)
    assert apart.teachers[0] is apart.teachers[3]
    assert apart.shapes == together.shapes
    assert apart.tokenizations.each[1].max_positions == 512
    batch = collator(together)(some(together))
    for a, b in zip(apart(batch, PLAIN), together(batch, PLAIN), strict=True):
        same(a, b)
    assert most == 1
    assert not any(one() is not None for one in alive)


def test_weights_that_visit_a_device_go_home() -> None:
    model = load_foreign(TeacherSpec(model=many.folder("gpt2")), ModelConfig(name=""), CPU)  # its head is its embedding
    before = {name: (part, part.clone()) for name, part in model.named_parameters()}
    with _on_device(model, torch.device("meta")):
        assert all(part.device.type == "meta" for part in (*model.parameters(), *model.buffers()))
        assert model.causal_lm.lm_head.weight is model.decoder.wte.weight
        assert len(list(model.parameters())) == len(before)
        assert model.device.type == "meta"
    for name, part in model.named_parameters():
        assert part is before[name][0]
        assert torch.equal(part, before[name][1])


def test_quantised_weights_do_not_move() -> None:
    recipe = many.recipe(many.entry("llama", quantization="nf4"), more=("mixture.residence=one_at_a_time",))
    with pytest.raises(ConfigError, match="is quantised, and its weights cannot move"):
        load_teacher_set(recipe, many.tokenizer("small"), CPU)


MEASURE = """
import re, sys
import torch
import many
from kava.backbone.silence_libraries import silence_libraries
from kava.teachers.teacher_set import load_teacher_set
from test_teacher_set import CPU, PLAIN, collator, student_rows

def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3

silence_libraries()
residence, *folders = sys.argv[1:]
entries = ["{name: t%d, model: '%s'}" % (i, folder) for i, folder in enumerate(folders)]
recipe = many.recipe(*entries, more=("mixture.residence=" + residence,))
start = highest()
found = load_teacher_set(recipe, many.tokenizer("small"), CPU)
batch = collator(found)(student_rows(found)[:2])
for _ in range(2):
    found(batch, PLAIN)
print(highest() - start)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_peak_memory_is_the_student_and_one_teacher(tmp_path: Path) -> None:
    model, tokenizer = many.build("llama", hidden_size=768, intermediate_size=2048, num_hidden_layers=4)
    size = sum(weight.numel() * 4 for weight in model.parameters()) / 1e6
    folders = [str(tmp_path / str(i)) for i in range(3)]
    for folder in folders:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    lines = f"import sys; sys.path[:0] = {[str(Path(__file__).parents[level]) for level in (0, 1)]}\n{MEASURE}"

    def peak(residence: str, count: int) -> float:
        words = [sys.executable, "-c", lines, residence, *folders[:count]]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    one, together, apart = peak("together", 1), peak("together", 3), peak("one_at_a_time", 3)
    said = f"{one:.0f} MB with one teacher of {size:.0f} MB, {together:.0f} with three, {apart:.0f} one at a time"
    assert together > one + 1.5 * size, said
    assert apart < one + 0.3 * size, said


def test_recipes_of_the_zoo_are_whole() -> None:
    recipe: Recipe = many.recipe(*FAMILIES, *OTHERS)
    assert [spec.label for spec in recipe.mixture.teachers] == [*FAMILIES, *OTHERS]
    for kind in (*FAMILIES, *OTHERS):
        assert many.tokenizer(kind).is_fast
    ids = {kind: many.tokenizer(kind)("3+4=7 is 12")["input_ids"] for kind in ("llama", "qwen3", "gpt2", "small")}
    assert len({tuple(found) for found in ids.values()}) == 4

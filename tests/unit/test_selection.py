"""kava selection, and the held-out losses of kava evaluate --losses: what the teacher's cache holds for whom."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

import hub
from kava.cli.main import main
from kava.compress import make_compressor
from kava.config import LossConfig
from kava.data.collate import Collator
from kava.data.encode import Encoded, Encoder
from kava.data.example import Example
from kava.errors import ConfigError, DataError
from kava.evaluation.eval_sets import EvalSet
from kava.evaluation.losses import COMPRESSORS, held_out_losses
from kava.evaluation.selection import choose, compressors_of, selection_document, shares
from kava.infer.student import Student
from kava.objective.compare import Sides
from kava.objective.make import latent_objective
from kava.objective.records import Step
from kava.teachers.base import TeacherWants

KEEP = 3
EXAMPLES = [
    Example(f"t/{i}", f"{i}+1*2?", tuple(f"{i}+{j}={i + j}" for j in range(1, i % 4 + 1)), str(i + 9))
    for i in range(11)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub.tiny_student(tmp_path_factory.mktemp("run") / "best_checkpoint", ["dataset.drop_last_step=true"])


@pytest.fixture(scope="module")
def student(folder):
    return Student.from_pretrained(folder)


@pytest.fixture(scope="module")
def document(student, folder):
    names = ["rkv", "full", "crop", "steps", "uniform", "random"]
    return selection_document(student, folder, compressors_of(student.recipe, names), 3, EXAMPLES)


# -- kept.json -------------------------------------------------------------------------------------------------------


def test_its_form(document, student):
    assert json.loads(json.dumps(document)) == document
    assert (document["keep"], document["layers"], document["heads"]) == (KEEP, 2, 2)
    assert (document["config"], document["resampled"]) == ("debug", ["full"])
    assert [e["id"] for e in document["examples"]] == ["t/2", "t/10", "t/7"]  # from two steps left to three
    for e in document["examples"]:
        steps = next(one.steps for one in EXAMPLES if one.id == e["id"])[:-1]
        assert "".join(e["tokens"]) == " ".join(steps)
        assert len(e["is_result"]) == len(e["tokens"])
        for layers in e["kept"].values():
            assert [len(heads) for heads in layers] == [2, 2]
            for columns in (columns for heads in layers for columns in heads):
                assert columns == sorted(columns)
                assert len(columns) <= KEEP
                assert set(columns) <= set(range(len(e["tokens"])))


def test_what_positions_alone_decide(document):
    for e in document["examples"]:
        length = len(e["tokens"])
        results = [i for i, flag in enumerate(e["is_result"]) if flag]
        wanted = {
            "steps": results[:KEEP],
            "crop": list(range(length))[-KEEP:],
            "uniform": [(2 * i + 1) * length // (2 * KEEP) for i in range(KEEP)],
            "full": [math.floor(i * (length - 1) / (KEEP - 1) + 0.5) for i in range(KEEP)],
        }
        for name, columns in wanted.items():
            assert e["kept"][name] == [[columns] * 2] * 2, name
        assert len({str(columns) for heads in e["kept"]["random"] for columns in heads}) == 1


def test_rkv_is_chosen_from_the_teachers_keys_and_attention(document, student):
    """By plain loops, from a plain forward of the backbone."""
    recipe, model = student.recipe, student.model
    encoder = Encoder(student.tokenizer, True, "equation")
    group = model.config.num_attention_heads // model.kv_shape.num_heads
    for e in document["examples"]:
        one = encoder(next(x for x in EXAMPLES if x.id == e["id"]))
        ids = torch.tensor([[*one.question, *one.cot, *one.cue, *one.answer, one.eos]])
        first, last = len(one.question), len(one.question) + len(one.cot)
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
        with torch.no_grad():
            out = model.run(model.embed(ids), torch.arange(ids.shape[1])[None], mask)
        for layer in range(2):
            for head in range(2):
                keys = [out.keys[layer][0, head, i].double() for i in range(first, last)]
                answer = range(last + len(one.cue), last + len(one.cue) + len(one.answer))
                attention = [0.0] * len(keys)
                for a in answer:
                    queries = [out.queries[layer][0, head * group + r, a].double() for r in range(group)]
                    logits = [max(float(q @ k) for q in queries) * model.scale for k in keys]
                    total = sum(math.exp(v) for v in logits)
                    attention = [s + math.exp(v) / total / len(answer) for s, v in zip(attention, logits, strict=True)]
                units = [k / k.norm() for k in keys]
                alike = [
                    sum(float(u @ v) for j, v in enumerate(units) if j != i) / len(keys) for i, u in enumerate(units)
                ]
                total = sum(math.exp(-v) for v in alike)
                lambda_ = recipe.rkv.lambda_
                score = [
                    lambda_ * s + (1 - lambda_) * math.exp(-v) / total for s, v in zip(attention, alike, strict=True)
                ]
                best = sorted(sorted(range(len(score)), key=lambda i: -score[i])[:KEEP])
                assert e["kept"]["rkv"][layer][head] == best


def encoded(*lengths):
    return [Encoded(f"e{i}", [1], [5] * n, [False] * n, [2], [3], 0) for i, n in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "count", "chosen"),
    [
        ((4, 9, 3, 5), 2, ["e0", "e1"]),
        ((9, 4, 5, 6, 7), 3, ["e1", "e3", "e0"]),
        ((1, 9, 3, 2), 3, ["e1", "e2", "e3"]),
        ((0, 1, 3, 0), 3, ["e2", "e1"]),
        ((5,), 3, ["e0"]),
    ],
)
def test_which_examples_are_looked_at(lengths, count, chosen):
    assert [e.id for e in choose(encoded(*lengths), KEEP, count)] == chosen


def test_without_a_chain_of_thought_there_is_nothing_to_keep():
    with pytest.raises(DataError, match="no validation example has a chain of thought"):
        choose(encoded(0, 0), KEEP, 3)


def test_shares_count_entries_over_layers_and_heads():
    example = {
        "tokens": ["1", "+", "1", "=", "2"],
        "is_result": [False, False, False, False, True],
        "kept": {"a": [[[0, 4], [3, 4]], [[2, 4], [4]]], "b": [[[], []], [[], []]]},
    }
    everything, a, b = shares({"examples": [example]})
    assert (everything["compressor"], everything["entries"], everything["results"]) == ("(all tokens)", 5, 1)
    assert (a["entries"], a["results"], a["tokens"]) == (7, 4, {"2": 4, "1": 2, "=": 1})
    assert (b["entries"], b["results"], b["tokens"]) == (0, 0, {})


def test_kept_through_the_command(folder, tmp_path, capsys):
    words = ["kept", "--checkpoint", str(folder)]
    assert main([*words, "--examples", "2", "--compressors", "steps", "crop"]) == 0
    shown = capsys.readouterr().out
    assert "100.0 %" in shown
    assert str(folder.parent / "kept.json") in shown
    found = json.loads((folder.parent / "kept.json").read_text())
    assert [list(e["kept"]) for e in found["examples"]] == [["steps", "crop"]] * 2
    assert found["checkpoint"] == str(folder)
    assert main([*words, "--quiet", "--output", str(tmp_path / "k.json")]) == 0
    assert [row["compressor"] for row in json.loads(capsys.readouterr().out)["shares"]][1:] == [
        "rkv", "full", "crop", "steps", "uniform", "random"
    ]  # fmt: skip
    for flags, said in (
        (["--compressors", "stepz"], "did you mean 'steps'"),
        (["--examples", "0"], "examples"),
        (["--output", str(tmp_path)], "is no .json file"),
    ):
        assert main([*words, *flags]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) <= 2


def test_a_student_without_latents_keeps_nothing(student):
    recipe = student.recipe
    none = recipe.model_copy(update={"latent": recipe.latent.model_copy(update={"num_tokens": 0})})
    with pytest.raises(ConfigError, match="no latents"):
        compressors_of(none, ["rkv"])


# -- held-out losses -------------------------------------------------------------------------------------------------


def batch_of(student, examples):
    encoder = Encoder(student.tokenizer, True, "equation")
    return Collator(student.tokenizer.pad_token_id)(encoder.encode_batch(examples))


def unexplained_by_dim(student, asked):
    """(latent - entry)^2 over (entry - mean)^2 of every dimension, the entries of all items side by side."""
    by_compressor = {}
    for name in COMPRESSORS:
        loss = LossConfig(alpha1_codi=0)
        objective = latent_objective(student.model, loss, make_compressor(name))
        sides = {}
        for example in (example for example in asked.examples if len(example.steps) > 1):
            batch = batch_of(student, [example])
            with torch.no_grad():
                views = objective.view(batch)
                target = objective.source(batch, views, TeacherWants(importance=True), Step())
                for pair in objective.compare(Sides(batch, views[0], target, objective.samples(batch))):
                    for head in range(pair.kept.shape[1]):
                        kept = pair.kept[0, head]
                        entries = pair.student[0, head][kept].double(), pair.target[0, head][kept].double()
                        sides.setdefault((pair.kind, pair.layer, head), []).append(entries)
        shares = []
        for parts in sides.values():
            own, other = (torch.cat(part) for part in zip(*parts, strict=True))
            shares.append(((own - other).square().sum(0) / (other - other.mean(0)).square().sum(0)).mean())
        by_compressor[f"kv_by_dim_{name}"] = float(torch.stack(shares).mean())
    return by_compressor


def test_losses_are_the_trainings_own(student):
    """Each term from an objective of its own, one item at a time; sums over counts."""
    asked = EvalSet("s", EXAMPLES[:6], 6)
    found = held_out_losses(student, asked, 4)
    total, count = {}, {}
    for example in asked.examples:
        with_cot = len(example.steps) > 1
        for name in COMPRESSORS:
            loss = LossConfig(alpha1_codi=0, alpha2_kv=float(with_cot), kv_loss_type="mse", teacher_ce=float(with_cot))
            objective = latent_objective(student.model, loss, make_compressor(name))
            with torch.no_grad():
                for term in objective(batch_of(student, [example]), Step(log=False)).terms:
                    key = f"kv_{name}" if term.name == "kv" else term.name
                    total[key] = total.get(key, 0) + float(term.total)
                    count[key] = count.get(key, 0) + term.count
    by_dim = {name: value for name, value in found["losses"].items() if name.startswith("kv_by_dim_")}
    assert by_dim == pytest.approx(unexplained_by_dim(student, asked), rel=1e-5)
    terms = {name: value for name, value in found["losses"].items() if name not in by_dim}
    for name, value in terms.items():
        wanted = math.exp(found["losses"]["ce_student"]) if name == "ppl" else total[name] / count[name]
        assert value == pytest.approx(wanted, rel=1e-5), name
    assert set(terms) == {"ce_student", "ce_teacher", "ppl", *(f"kv_{name}" for name in COMPRESSORS)}
    with_cot = sum(len(e.steps) > 1 for e in asked.examples)
    places = (f"{prefix}{name}" for prefix in ("kv_", "kv_by_dim_") for name in COMPRESSORS)
    items = {"ce_student": 6, "ce_teacher": with_cot, **dict.fromkeys(places, with_cot)}
    assert found["losses_items"] == items


def test_batches_change_no_loss(student):
    first, *others = (held_out_losses(student, EvalSet("s", EXAMPLES, 11), size)["losses"] for size in (1, 7, 64))
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def test_the_yardstick_is_the_same_whatever_the_student_was_trained_with(student, tmp_path):
    settings = ["dataset.drop_last_step=true", "loss.kv_loss_type=l1", "rkv.method=random", "rkv.rotary=before"]
    other = Student.from_pretrained(hub.tiny_student(tmp_path / "s", settings))  # same weights
    asked = EvalSet("s", EXAMPLES, 11)
    assert held_out_losses(other, asked, 4) == held_out_losses(student, asked, 4)


def test_what_cannot_be_measured_is_left_out(student, tmp_path):
    plain = [Example("p/0", "3+4?", (), "7"), Example("p/1", "3+5?", ("3+5=8",), "8")]
    found = held_out_losses(student, EvalSet("s", plain, 2), 4)  # the only step is the last one, which is dropped
    assert set(found["losses"]) == {"ce_student", "ppl"}
    assert found["losses_items"] == {"ce_student": 2}
    words = [Example("w/0", "3?", ("so it is", "and so on"), "3")]
    assert "kv_steps" not in held_out_losses(student, EvalSet("s", words, 1), 4)["losses"]
    bare = Student.from_pretrained(hub.tiny_student(tmp_path / "s", ["latent.num_tokens=0", "loss.alpha2_kv=0"]))
    assert set(held_out_losses(bare, EvalSet("s", EXAMPLES, 11), 4)["losses"]) == {"ce_student", "ce_teacher", "ppl"}


def test_losses_through_the_command(folder, tmp_path, capsys):
    words = ["evaluate", "--checkpoint", str(folder), "--max_new_tokens", "2", "--losses", "--output", str(tmp_path)]
    assert main(words) == 0
    assert "ce_student" in capsys.readouterr().out
    results = yaml.safe_load((tmp_path / "results_chains.yaml").read_text())
    assert results["losses"]["ppl"] == pytest.approx(math.exp(results["losses"]["ce_student"]))
    assert results["losses_items"]["ce_student"] == results["total"] == 16

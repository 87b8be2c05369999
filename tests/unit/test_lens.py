"""kava lens against the library's own attention and a plain causal pass; the same with any batch; refusals, page and text."""

import json

import pytest
import torch

import hub
import zoo
from kava import lens
from kava.backbone.masks import causal_mask, positions
from kava.cli.main import main
from kava.data.example import Example
from kava.errors import ConfigError, DataError
from kava.evaluation.score import predict, summary
from kava.infer.ablate import ABLATIONS
from kava.infer.generate import think_with_prefix
from kava.infer.student import Student
from kava.lens.answer import Thought, attention_of, say
from kava.lens.page import render_lens
from kava.lens.text import WIDTH, report_text

EXAMPLES = [
    Example(f"t/{i}", f"{'3+' * (i % 4)}{i}*2?", tuple(f"{i}+{j}={i + j}" for j in range(i % 3)), str(i))
    for i in range(6)
]
FAMILIES = ("llama-gqa", "llama-mha", "qwen2", "qwen3", "gpt2")


class Names:
    """A tokenizer as far as the lens asks it for names."""

    def decode(self, ids):
        return f"<{ids[0]}>"

    def __len__(self):
        return zoo.VOCAB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub.tiny_student(tmp_path_factory.mktemp("lens") / "best_checkpoint")


@pytest.fixture(scope="module")
def student(folder):
    return Student.from_pretrained(folder)


@pytest.fixture(scope="module")
def report(student):
    return lens.look(student, EXAMPLES, top=3)


# -- against the library ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["jacobi", "sequential"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attention_and_log_probabilities_are_those_of_one_plain_pass(family, method):
    """[Q, <bot>, latents, <eot>, lead, answer] through the library's own eager attention, row by row without padding."""
    model = zoo.latent_model(family, method=method)
    batch = zoo.batch(side="left")
    question, mask = batch["question"], batch["question_mask"]
    lead, answers = [51, 52], [[9, 10, 0], [11], [12, 13, 14, 0]]
    thought = Thought(*think_with_prefix(model, question, mask))
    said = say(model, thought, lead, answers)
    views = attention_of(model, Names(), thought, said, lead, answers)
    plain = model.causal_lm
    plain.set_attn_implementation("eager")
    for b, ids in enumerate(answers):
        own = torch.cat([question[b][mask[b]], torch.tensor([zoo.SPECIAL.bot])])
        rest = torch.tensor([zoo.SPECIAL.eot, *lead, *ids])
        embeds = torch.cat([model.embed(own), thought.latents[b], model.embed(rest)])[None]
        out = plain(inputs_embeds=embeds, output_attentions=True, use_cache=False)
        begin, count = len(own), thought.latents.shape[1]
        tokens = slice(begin + count, begin + count + len(rest) - 1)
        weights = torch.stack([layer[0, :, tokens] for layer in out.attentions])  # [L, heads, tokens, all]
        latent, view = weights[..., begin : begin + count], views[b]
        tight = {"rtol": 1e-6, "atol": 1e-6}  # eager attention takes its softmax in float32
        torch.testing.assert_close(torch.tensor(view.mean).double(), latent.mean(1).double(), **tight)
        torch.testing.assert_close(torch.tensor(view.most).double(), latent.amax(1).double(), **tight)
        torch.testing.assert_close(torch.tensor(view.heads).double(), latent[:, :, 2:].mean(2).double(), **tight)
        share = weights[:, :, 2:, : begin - 1].sum(-1).mean((1, 2)).double()
        torch.testing.assert_close(torch.tensor(view.question).double(), share, **tight)
        logits = out.logits[0, begin + count + len(lead) : -1]
        right = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None]).sum()
        assert said.logprob[b] == pytest.approx(float(right), abs=1e-4)
        assert said.likeliest[b] == bool((logits.argmax(-1) == torch.tensor(ids)).all())
        assert view.tokens == [f"<{token}>" for token in rest[:-1]]


@torch.no_grad()
def test_the_chain_is_compared_by_layer_and_head(student, report):
    """One row by hand: both passes alone, cosines in loops."""
    example, view = EXAMPLES[5], report.questions[5]
    model, tokenizer = student.model, student.tokenizer
    chain = tokenizer(" ".join(example.steps), add_special_tokens=False)["input_ids"]
    question = student.encode([example.question])[0]
    text = torch.tensor([[*question, *chain]])
    real = torch.ones_like(text, dtype=torch.bool)
    teacher = model.run(model.embed(text), positions(real), causal_mask(real))
    latents, bot = student.think([example.question]), torch.tensor([[*question, model.special.bot]])
    embeds = torch.cat([model.embed(bot), latents], dim=1)
    real = torch.ones(embeds.shape[:2], dtype=torch.bool)
    whole = model.run(embeds, positions(real), causal_mask(real))
    for layer in range(2):
        for name, (own, other) in {
            "keys": (whole.keys, teacher.keys),
            "values": (whole.values, teacher.values),
        }.items():
            for i in range(3):
                for n in range(len(chain)):
                    left, right = own[layer][0, :, bot.shape[1] + i], other[layer][0, :, len(question) + n]
                    by_head = torch.cosine_similarity(left, right, dim=-1).mean()
                    assert getattr(view.chain, name)[layer][i][n] == pytest.approx(float(by_head), abs=1e-5)
    assert view.chain.tokens == [tokenizer.decode([token]) for token in chain]


@torch.no_grad()
def test_rounds_end_in_the_latents_that_the_student_thinks(student, report):
    table = torch.nn.functional.normalize(student.model.embed(torch.arange(len(student.tokenizer))), dim=-1)
    latents = torch.nn.functional.normalize(student.think([one.question for one in EXAMPLES]), dim=-1)
    for b, view in enumerate(report.questions):
        assert [one.number for one in view.rounds] == [0, 1, 2]  # pass 0 and T = 2
        best = (latents[b] @ table.T).max(-1)
        assert [slot[0].id for slot in view.rounds[-1].reads] == best.indices.tolist()
        assert [slot[0].value for slot in view.rounds[-1].reads] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert all(len(slot) == 3 for one in view.rounds for slot in one.says)


def test_sequential_latents_have_a_round_each(tmp_path):
    folder = hub.tiny_student(tmp_path / "s", ["latent.method=sequential"])
    view = lens.look(folder, ["1+1?"]).questions[0]
    assert [(one.number, len(one.says)) for one in view.rounds] == [(1, 1), (2, 2), (3, 3)]


# -- what the answers lose ---------------------------------------------------------------------------------------------


def test_all_slots_replaced_is_kava_evaluate(student, report):
    for kind in ABLATIONS:
        predictions = predict(student, EXAMPLES, ablate=kind)
        effects = [next(e for e in view.effects if e.kind == kind and e.slot is None) for view in report.questions]
        assert [e.answer for e in effects] == [item["text"] for item in predictions]
        assert [e.correct for e in effects] == [item["correct"] for item in predictions]
        total = next(e for e in report.effects if e.kind == kind and e.slot is None)
        assert total.accuracy == summary(predictions)["accuracy"]
    plain = predict(student, EXAMPLES)
    assert [view.answer for view in report.questions] == [item["text"] for item in plain]
    assert [view.forward_passes for view in report.questions] == [item["forward_passes"] for item in plain]


def test_an_answer_is_kept_where_the_student_still_gives_it(report):
    for view in report.questions:
        assert [(e.kind, e.slot) for e in view.effects] == [(k, s) for k in ABLATIONS for s in (0, 1, 2, None)]
        for effect in view.effects:
            if effect.slot is None and effect.kept:
                assert effect.answer == view.answer


def test_a_slot_is_swapped_with_the_next_question(student, report):
    texts = [one.question for one in EXAMPLES]
    latents = student.think(texts)
    changed = latents.clone()
    changed[:, 1] = latents.roll(-1, 0)[:, 1]
    answers = [answer.text for answer in student.answer(texts, latents=changed)]
    for view, text in zip(report.questions, answers, strict=True):
        effect = next(e for e in view.effects if e.kind == "swap" and e.slot == 1)
        assert effect.kept == (text == view.answer)
        assert effect.answer is None


# -- invariance ----------------------------------------------------------------------------------------------------------


def close(left, right):
    """Equal data, numbers to 1e-4."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    return left == pytest.approx(right, abs=1e-4) if isinstance(left, float) else left == right


def test_the_batch_changes_nothing(student, report):
    for size in (1, 4):
        assert close(lens.look(student, EXAMPLES, top=3, batch_size=size).to_dict(), report.to_dict())


def test_a_single_question_has_zero_only(student):
    assert student.lens(["3+4?"], top=2).to_dict() == lens.look(student, ["3+4?"], top=2).to_dict()
    alone = lens.look(student, [EXAMPLES[3].question])
    assert {effect.kind for effect in alone.effects} == {"zero"}
    assert "several questions" in alone.notes[0]
    assert (alone.accuracy, alone.diagonal, alone.questions[0].chain, alone.questions[0].gold_logprob) == (None,) * 4


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [["latent.num_iterations=0"], ["latent.num_tokens=0", "loss.alpha2_kv=0"]])
def test_a_student_that_thinks_nothing_is_refused(tmp_path, capsys, settings):
    folder = hub.tiny_student(tmp_path / "s", settings)
    assert main(["lens", str(folder), "--questions", "1+1?"]) == 2
    error = capsys.readouterr().err
    assert "thinks nothing to look into" in error
    assert "Traceback" not in error


def test_a_student_of_the_explicit_line_is_refused(student):
    recipe = student.recipe.model_copy(
        update={"explicit": student.recipe.explicit.model_copy(update={"enabled": True})}
    )
    with pytest.raises(ConfigError, match="explicit line"):
        lens.look(Student(student.model, student.tokenizer, recipe), ["1+1?"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "there are no questions"),
        (["--questions", "1?", "--dataset", "chains"], "exclude"),
        (["--questions", "no_such.jsonl"], "no such file"),
        (["--questions", "1?", "--limit", "3"], "--limit has no effect"),
        (["--questions", "1?", "--output", "page.pdf"], "unknown ending"),
        (["--questions", " "], "question 1 is empty"),
        (["--questions", "1?", "--top", "0"], "--top"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(["lens", str(folder), *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_questions_from_python(student):
    for questions, says in (("1+1?", "list of texts"), ([], "no question"), ([3], "not text")):
        with pytest.raises(DataError, match=says):
            lens.look(student, questions)


# -- text, page, verb ----------------------------------------------------------------------------------------------------


def test_the_text_fits_a_terminal(report):
    text = report_text(report)
    assert text.isascii()
    assert max(map(len, text.split("\n"))) <= WIDTH
    for part in (
        "What the answers lose",
        "said (head, probability) | read (embedding, cosine)",
        "Diagonal",
        "Nearest step",
    ):
        assert part in text


def test_the_page_holds_the_data_and_lets_no_text_out(student):
    question = "</script><img src=x onerror=alert(1)> 1+1?"
    report = lens.look(student, [question])
    page = render_lens(report.to_dict())
    head, _, tail = page.partition('<script type="application/json" id="data">')
    data = tail.partition("</script>")[0]
    assert json.loads(data) == report.to_dict()
    assert "<" not in data
    assert "onerror" not in head
    assert "default-src 'none'" in head
    assert "http" not in page.replace("http-equiv", "")
    assert "innerHTML" not in page


def test_the_verb_writes_what_python_returns(folder, student, tmp_path, capsys):
    rows = tmp_path / "own.jsonl"
    rows.write_text("".join(json.dumps({"question": e.question, "steps": list(e.steps), "answer": e.answer}) + "\n"
                            for e in EXAMPLES))  # fmt: skip
    data, page = tmp_path / "data.json", tmp_path / "page.html"
    assert main(["lens", str(folder), "--questions", str(rows), "--output", str(data), "--top", "3"]) == 0
    assert "What the answers lose" in capsys.readouterr().out
    loaded = json.loads(data.read_text())
    assert [view["id"] for view in loaded["questions"]] == [f"own/{i}" for i in range(len(EXAMPLES))]
    assert [view["answer"] for view in loaded["questions"]] == [
        a.text for a in student.answer([e.question for e in EXAMPLES])
    ]
    assert main(["lens", str(folder), "--questions", "1+1?", "2+2?", "--output", str(page), "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["kava_lens"] == 1
    page.write_text("mine")
    assert main(["lens", str(folder), "--questions", "1+1?", "--output", str(page)]) == 2
    assert page.read_text() == "mine"

"""kava infer: questions in every way, answers to every place, and each mistake as one line."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch

from compare import tiny_base
from hub import tiny_student
from kava.backbone.artifact import write_student
from kava.backbone.fold import folded
from kava.backbone.load import build_model
from kava.cli.list_flags import spread
from kava.cli.main import main
from kava.cli.verbs import underscores
from kava.config import load_recipe
from kava.console import visible
from kava.evaluation.overrides import EvalOverrides
from kava.infer import student as student_module
from kava.infer.batch import RULE
from kava.infer.chat import Chat
from kava.infer.sampling import Sampling
from kava.infer.student import Student

UNCHANGED_BUT_ONE_LATENT = EvalOverrides(num_tokens=1)
QUESTIONS = ["3+4*2?", "-3+4?", "--5-3?", "How many?"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture(scope="module")
def student(checkpoint):
    return Student.from_pretrained(checkpoint)


def infer(checkpoint, *words):
    return main(["infer", "--checkpoint", str(checkpoint), *map(str, words)])


def answered(capsys, checkpoint, *words):
    assert infer(checkpoint, "--quiet", *words) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--q", "a", "b", "--x", "1"], ["--q=a", "--q=b", "--x", "1"]),
        (["--q", "-3+4?", "--5-3?", "--a b"], ["--q=-3+4?", "--q=--5-3?", "--q=--a b"]),
        (["--q=a", "b"], ["--q=a", "--q=b"]),
        (["--q", "a", "--q", "b"], ["--q=a", "--q=b"]),
        (["--q"], ["--q"]),
        (["--q", "--x"], ["--q", "--x"]),
        (["--q", "--", "--x", "-h"], ["--q=--x", "--q=-h"]),
        (["--x", "1", "2", "-h"], ["--x", "1", "2", "-h"]),
        (["--q", "a=b", "--x=1"], ["--q=a=b", "--x=1"]),
    ],
)
def test_list_flags_take_all_words_up_to_the_next_flag(words, expected):
    assert spread(words, {"--q"}) == expected


def test_a_question_is_not_respelt():
    assert underscores(["--input-file", "a-b", "--5-3?", "--how-many"]) == [
        "--input_file",
        "a-b",
        "--5-3?",
        "--how_many",
    ]


def test_batch_from_the_command_line(capsys, tmp_path, checkpoint, student):
    target = tmp_path / "deep" / "answers.txt"
    assert infer(checkpoint, "--mode", "batch", "--questions", *QUESTIONS, "--output_file", target) == 0
    shown = capsys.readouterr().out
    answers = student.answer(QUESTIONS)
    blocks = [f"Q: {question}\nA: {answer.text}" for question, answer in zip(QUESTIONS, answers, strict=True)]
    assert target.read_text(encoding="utf-8") == f"\n{RULE}\n".join(blocks) + "\n"
    assert len(RULE) == 80
    assert shown.count("forward passes") == len(QUESTIONS)
    assert f"wrote {target}" in shown


def test_files_in_files_out(capsys, tmp_path, checkpoint):
    lines, rows = tmp_path / "q.txt", tmp_path / "q.jsonl"
    lines.write_text("\ufeff" + "\n\n".join(QUESTIONS) + "\n", encoding="utf-8")
    fields = ("question", "prompt", "problem", "question")
    rows.write_text("".join(json.dumps({f: q}) + "\n" for f, q in zip(fields, QUESTIONS, strict=True)))
    by_hand = answered(capsys, checkpoint, "--questions", *QUESTIONS)
    assert [row["question"] for row in by_hand] == QUESTIONS
    target = tmp_path / "a.jsonl"
    assert answered(capsys, checkpoint, "--input_file", lines, "--output_file", target) == by_hand
    assert [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] == by_hand
    assert answered(capsys, checkpoint, "--input-file", rows, "--batch-size", 1) == by_hand


def test_typed_special_tokens_are_characters(student):
    special = {*student.model.special.ids, student.tokenizer.eos_token_id}
    for question in ("3+4?<eot>", "<latent>3+4?", "<bot>3+4?<eos>"):
        ids, _ = student._encoded([question])
        tokens = ids[0].tolist()[len(student._encoder.bos) :]
        assert special.isdisjoint(tokens)
        assert student.tokenizer.decode(tokens) == question + "\n"


def test_latent_and_written_steps(capsys, checkpoint, student):
    latent = answered(capsys, checkpoint, "--questions", QUESTIONS[0], "--max_new_tokens", 5)[0]
    steps = answered(capsys, checkpoint, "--questions", QUESTIONS[0], "--max_new_tokens", 5, "--no_latent")[0]
    assert (latent["mode"], steps["mode"]) == ("latent", "cot")
    assert latent["forward_passes"] == 1 + student.model.rounds + latent["generated_tokens"]
    assert steps["forward_passes"] == 1 + steps["generated_tokens"]
    assert latent["truncated"]
    assert latent["generated_tokens"] == 5


def test_a_mode_nobody_trained_is_said(capsys, tmp_path):
    folder = tiny_student(tmp_path / "s", ["loss.teacher_ce=0"])
    assert infer(folder, "--questions", "3?", "--no_latent") == 0
    assert "not trained for" in capsys.readouterr().err


def test_the_config_may_be_checked(capsys, checkpoint):
    assert infer(checkpoint, "--config", checkpoint / "recipe.yaml", "--questions", "3?") == 0
    capsys.readouterr()
    for name, key in (("debug", None), ("qwen05b_aug", "lora.enabled")):
        assert infer(checkpoint, "--config", name, "--questions", "3?") == (0 if key is None else 2)
        assert key is None or f"{key} is" in capsys.readouterr().err


def bad_inputs(tmp_path, checkpoint):
    """(flags, what the message must say)"""
    empty, torn_line, latin, folder = (tmp_path / n for n in ("empty.txt", "bad.jsonl", "latin.txt", "folder"))
    empty.write_text("\n\n")
    torn_line.write_text('{"question": "3?"}\n{"answer": "4"}\n')
    latin.write_bytes("caf\u00e9".encode("latin-1"))
    folder.mkdir()
    ask = ["--questions", "3?"]
    yield ["--checkpoint", checkpoint, "--mode", "batch"], "no questions"
    yield ["--checkpoint", checkpoint, *ask, "--input_file", empty], "exclude each other"
    yield ["--checkpoint", checkpoint, "--input_file", empty], "holds no question"
    yield ["--checkpoint", checkpoint, "--input_file", tmp_path / "none.txt"], "cannot be read"
    yield ["--checkpoint", checkpoint, "--input_file", tmp_path / "none.jsonl"], "cannot be read"
    yield ["--checkpoint", checkpoint, "--input_file", torn_line], "line 2"
    yield ["--checkpoint", checkpoint, "--input_file", latin], "not UTF-8"
    yield ["--checkpoint", checkpoint, "--questions", "3?", " "], "question 2 is empty"
    yield ["--checkpoint", checkpoint, "--mode", "interactive", *ask], "--questions has no effect"
    yield ["--checkpoint", checkpoint, "--quiet"], "--quiet has no effect"
    yield ["--checkpoint", checkpoint, *ask, "--output_file", folder], "is a folder"
    yield ["--checkpoint", checkpoint, "--input_file", latin, "--output_file", latin], "is an input"
    yield ["--checkpoint", checkpoint, *ask, "--device", "tpu"], "not available"
    yield ["--checkpoint", checkpoint, *ask, "--max_new_tokens", "0"], "max_new_tokens"
    yield ["--checkpoint", checkpoint, *ask, "--output_fiel", "x"], "--output_fiel"
    yield ["--checkpoint", checkpoint, *ask, "--config", "nosuch"], "unknown recipe"
    yield ["--checkpoint", tmp_path / "nowhere", *ask], "does not exist"
    yield ["--checkpoint", empty, *ask], "is not a folder"
    yield ["--checkpoint", folder, *ask], "is empty"
    yield ["--checkpoint", checkpoint.parent, *ask], str(checkpoint)
    yield [*ask], "--checkpoint"


def test_each_mistake_is_one_line_and_exit_2(capsys, tmp_path, checkpoint):
    for flags, said in bad_inputs(tmp_path, checkpoint):
        assert main(["infer", *map(str, flags)]) == 2, flags
        out, err = capsys.readouterr()
        assert said in err, (flags, err)
        assert err.startswith("error: ")
        assert len(err.splitlines()) <= 2
        assert not out


@pytest.mark.parametrize("name", ["kava.json", "recipe.yaml", "trained.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_torn_checkpoint(capsys, tmp_path, checkpoint, name, damage):
    folder = tmp_path / "torn"
    shutil.copytree(checkpoint, folder)
    file = folder / name
    whole = file.read_bytes()
    file.unlink() if damage == "missing" else file.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
    assert infer(folder, "--questions", "3?") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    assert not out


def chat(student, *lines, mode="latent"):
    """Everything said in a conversation of these lines; then the input ends."""
    said = []
    rest = iter(lines)

    def read(prompt):
        line = next(rest, None)
        if line is None:
            raise EOFError
        if line is KeyboardInterrupt:
            raise line
        return line

    one = Chat(student, mode, 6, said.append)
    one.run(read)
    return one, said


def test_conversation(student):
    one, said = chat(student, "3+4?", "/latent off", "3+4?", "/latent on", "", "3+4?", "/quit", "/temp 3")
    latent, steps = student.answer(["3+4?"], "latent", 1, 6)[0], student.answer(["3+4?"], "cot", 1, 6)[0]
    answers = [line for line in said if "forward passes" in line]
    assert [a.partition("\n[")[0] for a in answers] == [*map(visible, (latent.text, steps.text, latent.text))]
    assert f"[{latent.forward_passes} forward passes, cut off]" in answers[0]
    assert one.temperature == 0  # /quit came first


@pytest.mark.parametrize(
    "line", ["/temp x", "/temp -1", "/temp inf", "/temp", "/latent maybe", "/latent", "/foo", "/help"]
)
def test_a_bad_command_explains_itself_and_changes_nothing(student, line):
    one, said = chat(student, line)
    assert (one.mode, one.temperature) == ("latent", 0)
    assert any("usage" in text or "/quit" in text for text in said[1:])


def test_temperature_draws(student):
    one, said = chat(student, "/temp 5", *["3+4?"] * 4)
    assert one.temperature == 5
    assert len({text for text in said if "forward passes" in text}) > 1


def test_ctrl_c_and_the_end_of_input_leave_cleanly(student):
    for lines in ((), (KeyboardInterrupt,), ("3?", KeyboardInterrupt)):
        chat(student, *lines)


def test_interactive_through_the_command(capsys, monkeypatch, checkpoint):
    monkeypatch.setattr("sys.stdin", io.StringIO("3+4?\n/quit\n"))
    assert infer(checkpoint, "--mode", "interactive", "--max_new_tokens", 4) == 0
    assert "forward passes" in capsys.readouterr().out


# -- what is computed once -------------------------------------------------------------------------------------------


def rows_of_each_pass(model, run):
    """Rows and columns of every pass of the decoder in `run`."""
    passes = []
    handle = model.decoder.layers[0].register_forward_pre_hook(lambda _, args: passes.append(tuple(args[0].shape[:2])))
    run()
    handle.remove()
    return passes


def test_a_repeated_question_is_answered_once_where_nothing_is_drawn(student):
    questions = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0], QUESTIONS[0]]
    answers = []
    passes = rows_of_each_pass(student.model, lambda: answers.extend(student.answer(questions, batch_size=4)))
    assert {rows for rows, _ in passes} <= {1, 2}
    assert answers == [student.answer([question])[0] for question in questions]


def test_a_repeated_question_is_read_once_where_answers_are_drawn(student):
    def draw():
        torch.manual_seed(1)
        return [answer.text for answer in student.answer(QUESTIONS[:2] * 3, "latent", 6, 4, Sampling(1.0))]

    passes = rows_of_each_pass(student.model, draw)
    thinking = 1 + student.model.rounds
    assert {rows for rows, _ in passes[:thinking]} == {2}
    assert passes[thinking] == (6, 1)
    assert draw() == draw()
    assert len(set(draw())) > 2


def test_similar_lengths_are_batched_and_answers_keep_their_order(student):
    questions = ["3?", "3+4*2-1+5*6?", "3+4?", "3+4*2-1?", "3?"]
    passes = rows_of_each_pass(student.model, lambda: student.answer(questions, "direct", 2, 1))
    longest = sorted({len(row) for row in student.encode(questions)}, reverse=True)
    extra = len(student.lead("direct")) + 2
    assert passes == [(2, longest[0] + extra), (2, longest[2] + extra)]
    assert student.answer(questions, batch_size=2) == [student.answer([question])[0] for question in questions]


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory):
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("lora") / "student"
    tiny_base(base, tied=True)
    settings = [f"model.name={base}", "lora.enabled=true", "lora.r=2", "lora.alpha=4", "evaluation.max_new_tokens=6"]
    recipe = load_recipe("debug", settings)
    model, tokenizer = build_model(recipe)
    move(model, 6)
    write_student(model, tokenizer, recipe, folder)
    return folder


@torch.no_grad()
def move(model, seed):
    torch.manual_seed(seed)
    for weight in model.trained().values():
        weight.add_(0.1 * torch.randn_like(weight))


def test_adapters_are_folded_once_and_again_when_they_have_moved(lora_folder, monkeypatch):
    copies = []
    monkeypatch.setattr(student_module, "folded", lambda model: copies.append(folded(model)) or copies[-1])
    exact = Student.from_pretrained(lora_folder, "cpu", exact_adapters=True)
    student = Student.from_pretrained(lora_folder, "cpu")
    assert student.answer(QUESTIONS) == exact.answer(QUESTIONS)
    assert torch.allclose(student.think(QUESTIONS), exact.think(QUESTIONS), atol=1e-5)
    assert len(copies) == 1
    before = exact.answer(QUESTIONS)
    for one in (student, exact):
        move(one.model, 7)
    assert student.answer(QUESTIONS) == exact.answer(QUESTIONS) != before
    assert len(copies) == 2
    with UNCHANGED_BUT_ONE_LATENT.applied(student), UNCHANGED_BUT_ONE_LATENT.applied(exact):
        assert student.answer(QUESTIONS) == exact.answer(QUESTIONS)
    assert len(copies) == 2


def test_exact_adapters_from_the_command_line(capsys, lora_folder, checkpoint):
    words = ("--questions", *QUESTIONS)
    assert answered(capsys, lora_folder, *words, "--exact_adapters") == answered(capsys, lora_folder, *words)
    assert infer(checkpoint, *words, "--exact_adapters") == 2
    assert "--exact_adapters has no effect" in capsys.readouterr().err

"""Command lines that a verb does not take: the error names what is wrong, and what to type instead."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import get_type_hints

import pytest

from kava.cli.main import main
from kava.cli.surroundings import refuse_empty_words
from kava.cli.verbs import HIDDEN, VERBS, verb_command


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("train --confg debug", "unknown flag '--confg'", "did you mean '--config'?"),
        ("seeds --cofnig debug training.max_steps=3", "unknown flag '--cofnig'", "did you mean '--config'?"),
        ("evaluate --checkpont x", "unknown flag|no such option: --checkpont", "checkpoint"),
        ("train debug", "missing option '--config'", "kava train --config debug"),
        ("seeds mine.yaml --seeds 1", "missing option '--config'", "kava seeds --config mine.yaml"),
        ("train", "missing option '--config'", "kava train --help lists the flags"),
        ("train --loss.alpha2_kv 2", "missing option '--config'", "--help lists the flags"),
        ("seeds --config debug --seeds 1,2,3", "invalid value for '--seeds'", "separated by spaces: --seeds 1 2 3"),
        ("train --config debug training.max_grad_norm=1", "unknown key 'training.max_grad_norm'", "kava config --keys"),
        ("train --config debug training.extra.foo=1", "unknown key 'training.extra.foo'", "kava config --keys"),
        ("train --config debug training.leraning_rate=1", "unknown key", "did you mean 'training.learning_rate'?"),
        ("train --config debug trainig.epochs=1", "unknown key", "did you mean 'training.epochs'?"),
        (
            "infer --checkpoint x --questions a evaluation.temperature=1",
            "is a setting and not a question",
            "--input_file",
        ),
    ],
)
def test_the_error_says_what_to_type(line: str, message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert hint in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", ""], "there is an empty word ('') after 'report'"),
        (["report", "runs", ""], "there is an empty word ('') after 'runs'"),
        (["report", "runs", "--title", ""], "--title is empty"),
        (["report", "runs", "--title="], "--title is empty"),
        (["show", ""], "there is an empty word ('') after 'show'"),
        (["model", "check", ""], "there is an empty word ('') after 'check'"),
        (["infer", "--checkpoint", "x", "--questions", "1?", ""], "there is an empty word ('') after '1?'"),
        (["submit", "train", "--account", "", "--config", "debug"], "--account is empty"),
    ],
)
def test_an_empty_word_is_an_unset_variable(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert f"error: {message}\n  hint: is a variable of a script not set?" in capsys.readouterr().err


def test_settings_and_words_of_another_command_may_be_empty() -> None:
    refuse_empty_words("train", ["--dataset.config", "", "model.revision="])
    refuse_empty_words("task", ["--status", "x", "--", "sh", "-c", ""])


def number_flags() -> Iterator[list[str]]:
    """Every flag of every verb that takes a number, after the words of its verb."""
    for verb in [*(verb.name for verb in VERBS), *HIDDEN]:
        command = verb_command(verb, importlib.import_module(f"kava.cli.{verb}"))
        for name, one in (getattr(command, "commands", None) or {"": command}).items():
            hints = get_type_hints(inspect.unwrap(one.callback))
            for parameter in one.params:
                if re.search(r"\b(int|float)\b", str(hints[parameter.name])):
                    yield [verb, *([name] if name else []), parameter.opts[0]]


def test_no_flag_takes_a_number_beyond_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(number_flags())
    assert len(lines) > 50
    for words in lines:
        assert main([*words, "1" + "0" * 30]) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("error: "), words
        assert words[-1].lstrip("-") in said, said  # distill reads some as settings
        assert re.search(r"up to 4294967295|not in the range|less than or equal to", said), said


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_what_is_no_number_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["align", "show", "--student_model", "a", "--teacher_model", "b", "--text", "c", "--threshold", word]
    assert main(words) == 2
    assert "--threshold" in capsys.readouterr().err

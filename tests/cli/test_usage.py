"""Command lines that a verb does not take: the error names what is wrong, and what to type instead."""

import re

import pytest

from kava.cli.main import main


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

"""Built-in sets: right arithmetic, disjoint splits, distinct held-out problems, the same rows every time."""

import re
from collections import Counter
from types import SimpleNamespace

import pytest

from kava.data.generator import Generator
from kava.data.tasks import TASKS
from kava.data.tasks.modular import ModularProblem, modular_members, problem_number
from kava.data.tasks.problem_set import split_of
from kava.errors import DataError

MODULAR = ("chains", "variables", "chains_nl", "variables_nl")
SYMBOL = {"plus": "+", "minus": "-", "times": "*", "Add": "+", "Subtract": "-", "Multiply by": "*"}


def config(**changes):
    fields = {"train_size": 600, "val_size": 60, "test_size": 150, "min_steps": 1, "max_steps": 3, "modulus": 5}
    return SimpleNamespace(**{**fields, **changes})


def test_the_documented_problem_in_all_forms():
    p = ModularProblem(3, (("+", 4), ("*", 2), ("-", 1)), 5)
    texts = {name: TASKS[name](name, config()).texts(p) for name in MODULAR}
    shown = {name: (question, list(steps)) for name, (question, steps, _) in texts.items()}
    assert shown["chains"] == ("3+4*2-1?", ["3+4=2", "2*2=4", "4-1=3"])
    assert shown["variables"] == ("a=3;b=a+4;c=b*2;d=c-1;d?", ["3+4=2", "2*2=4", "4-1=3"])
    nl_steps = ["3 plus 4 is 2.", "2 times 2 is 4.", "4 minus 1 is 3."]
    assert shown["chains_nl"] == ("Start with 3. Add 4. Multiply by 2. Subtract 1. What is the result?", nl_steps)
    assert shown["variables_nl"] == ("a is 3. b is a plus 4. c is b times 2. d is c minus 1. What is d?", nl_steps)
    assert ModularProblem(1, (("-", 4),), 5).values() == [1, 2]


@pytest.mark.parametrize("name", MODULAR)
def test_every_row_is_right_by_its_own_text(name):
    """Reads the question back and evaluates it, without the generator's own arithmetic."""
    for example in Generator(name, config(modulus=7)).split("test"):
        question = example.question
        if name.startswith("chains"):
            for word in ("Add", "Subtract", "Multiply by"):
                question = question.replace(f" {word} ", SYMBOL[word])
            start, pairs = re.match(r"\D*(\d+)", question).group(1), re.findall(r"([+*-])(\d+)", question)
        else:
            start = re.match(r"a(?:=| is )(\d+)", question).group(1)
            pairs = re.findall(r"[a-z] ?([+*-]|plus|minus|times) ?(\d+)", question)
        value, expected = int(start), []
        for symbol, b in pairs:
            symbol = SYMBOL.get(symbol, symbol)
            result = {"+": value + int(b), "-": value - int(b), "*": value * int(b)}[symbol] % 7
            expected.append((value, symbol, int(b), result))
            value = result
        assert example.answer == str(value)
        assert len(example.steps) == len(expected)
        for step, (a, symbol, b, c) in zip(example.steps, expected, strict=True):
            for word in ("plus", "minus", "times"):
                step = step.replace(f" {word} ", SYMBOL[word])
            assert step.replace(" is ", "=").rstrip(".") == f"{a}{symbol}{b}={c}"


@pytest.mark.parametrize("name", MODULAR)
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_splits_are_disjoint_for_any_seeds_and_sizes(name, seeds):
    train = {e.question for e in Generator(name, config(train_size=3000), seeds[0]).split("train")}
    validation = {e.question for e in Generator(name, config(val_size=200), seeds[1]).split("validation")}
    test = {e.question for e in Generator(name, config(test_size=500), seeds[0]).split("test")}
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_held_out_problems_are_distinct_and_ids_unique():
    generator = Generator("chains", config())
    for split in ("train", "validation", "test"):
        examples = generator.split(split)
        assert len({e.id for e in examples}) == len(examples)
        if split != "train":
            assert len({e.question for e in examples}) == len(examples)
    assert len(generator.split("train")) == 600


def test_lengths_are_mixed_and_short_ones_give_way():
    generator = Generator("chains", config(train_size=3000, test_size=600))
    train = Counter(len(e.steps) for e in generator.split("train"))
    assert set(train) == {1, 2, 3}
    assert all(800 < n < 1200 for n in train.values())
    test = Counter(len(e.steps) for e in generator.split("test"))
    assert sum(test.values()) == 600
    assert test[1] < 30 < test[2] <= test[3]


def test_same_seed_same_rows_other_seed_other_rows():
    a, b, c = (Generator("chains", config(), seed) for seed in (3, 3, 4))
    for split in ("train", "validation", "test"):
        assert a.split(split) == b.split(split)
        assert a.split(split) != c.split(split)


@pytest.mark.parametrize("steps", [3, 6])
def test_of_length_gives_unique_held_out_problems(steps):
    examples = Generator("chains", config()).of_length("test", steps, 500)
    assert len({e.question for e in examples}) == 500
    assert {len(e.steps) for e in examples} == {steps}
    train = {e.question for e in Generator("chains", config(train_size=3000, max_steps=steps)).split("train")}
    assert not train & {e.question for e in examples}


def test_a_smaller_draw_is_the_beginning_of_a_larger_one():
    generator = Generator("chains", config())
    assert generator.of_length("test", 3, 50) == generator.of_length("test", 3, 500)[:50]


@pytest.mark.parametrize(("steps", "count"), [(1, 60), (7, 10**9)])
def test_of_length_says_how_many_exist(steps, count):
    with pytest.raises(DataError, match=f"{count} test problems of {steps} steps") as caught:
        Generator("chains", config()).of_length("test", steps, count)
    assert caught.value.hint


def test_example_questions_are_of_the_longest_unseen_problems():
    for name in TASKS:
        generator = Generator(name, config(digits=3, nodes=12, train_size=2000))
        questions = generator.questions(3)
        assert len(questions) == 3
        assert questions == generator.questions(3)
        assert not {example.question for example in generator.split("train")} & set(questions)


def test_too_few_problems_are_said_aloud(caplog):
    examples = Generator("chains", config(max_steps=1, test_size=100)).split("test")
    assert 0 < len(examples) < 30
    assert f"only {len(examples)} distinct test problems" in caplog.text


def test_shares_of_the_splits():
    task, problems = TASKS["chains"]("chains", config()), [problem_number(5, 3, i) for i in range(16875)]
    assert [p.number() for p in problems] == list(range(16875))
    assert len({task.key(p) for p in problems}) == 16875
    shares = Counter(split_of(task.key(p)) for p in problems)
    assert shares == {split: len(members) for split, members in modular_members(5, 3).items()}
    assert shares["test"] / 16875 == pytest.approx(0.15, abs=0.02)
    assert shares["validation"] / 16875 == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("bad", [{"modulus": 1}, {"min_steps": 0}, {"min_steps": 4}])
def test_impossible_settings(bad):
    with pytest.raises(DataError, match=next(iter(bad))):
        Generator("chains", config(**bad))


def test_unknown_name():
    with pytest.raises(DataError, match="'chain'"):
        Generator("chain", config())

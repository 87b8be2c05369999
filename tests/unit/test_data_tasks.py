"""Harder generated sets: every row is right by its own text, splits share no question, rows repeat, bad settings refused."""

import re
from collections import Counter
from importlib import resources
from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerFast

from kava.config import GeneratorConfig, load_recipe
from kava.data.encode import Encoder
from kava.data.example import Example, content_hash
from kava.data.generator import Generator
from kava.data.tasks import TASKS
from kava.data.text_rows import TextRows
from kava.errors import ConfigError, DataError

HARDER = ("long_chains", "long_chains_nl", "reachability", "multiplication")
SIZES = {"train_size": 1500, "val_size": 120, "test_size": 300}
SETTINGS = {
    "long_chains": {"min_steps": 1, "max_steps": 6}, "long_chains_nl": {"min_steps": 1, "max_steps": 6},
    "reachability": {"min_steps": 2, "max_steps": 4, "nodes": 16}, "multiplication": {"digits": 4},
}  # fmt: skip
IN_WORDS = {"Add": "+", "plus": "+", "Subtract": "-", "minus": "-", "Multiply by": "*", "times": "*"}


def rows(name: str, split: str, seed: int = 0, **changes: int) -> list[Example]:
    return Generator(name, GeneratorConfig(**{**SIZES, **SETTINGS[name], **changes}), seed).split(split)


def in_signs(text: str) -> str:
    for word, sign in IN_WORDS.items():
        text = text.replace(f" {word} ", sign)
    return text


def evaluate_chain(example: Example) -> tuple[list[str], str]:
    """Steps and answer of a long chain, from its question alone."""
    question = in_signs(example.question)
    value, steps = int(re.search(r"\d+", question)[0]), []
    for sign, operand in re.findall(r"([-+*])\.?(\d+)", question):
        result = eval(f"{value}{sign}{operand}")
        steps.append(f"{value}{sign}{operand}={result}")
        value = result
    return steps, str(value)


def evaluate_graph(example: Example) -> tuple[list[str], str]:
    """The only path from the node asked about to one of the two, by breadth-first search."""
    *edges, query = example.question.removesuffix("?").split(";")
    root, _, names = query.partition(":")
    paths, frontier = {root: []}, [root]
    while frontier:
        node = frontier.pop(0)
        for edge in edges:
            start, end = edge.split(">")
            if start == node:
                assert end not in paths  # one path only, and no circle
                paths[end] = [*paths[node], edge]
                frontier.append(end)
    (answer,) = (name for name in names.split("|") if name in paths)
    return paths[answer], answer


def evaluate_product(example: Example) -> tuple[list[str], str]:
    """Long multiplication on lists of digits, lowest first; no integer is ever multiplied but digits."""
    first, second = ([int(d) for d in part.split()] for part in example.question.split(" * "))
    size, steps, total = len(first), [], [0] * 2 * len(first)

    def written(digits: list[int], place: int) -> str:
        assert not any(digits[size + 1 + place :])
        return " ".join(map(str, digits[: size + 1 + place]))

    def carried(digits: list[int]) -> list[int]:
        for i in range(len(digits) - 1):
            digits[i + 1] += digits[i] // 10
            digits[i] %= 10
        return digits

    for place, factor in enumerate(second):
        part = carried([*[0] * place, *(d * factor for d in first), *[0] * (size - place)])
        total = carried([a + b for a, b in zip(total, part, strict=True)])
        done = "" if place in (0, size - 1) else f" ( {written(total, place)} )"
        steps.append(f"{'+ ' if place else ''}{written(part, place)}{done}")
    return steps, " ".join(map(str, total))


EVALUATORS = dict(zip(HARDER, (evaluate_chain, evaluate_chain, evaluate_graph, evaluate_product), strict=True))


@pytest.mark.parametrize("name", HARDER)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_row_is_right_by_its_own_text(name, split):
    for example in rows(name, split):
        steps, answer = EVALUATORS[name](example)
        written = [in_signs(step).replace(" is ", "=").rstrip(".") for step in example.steps]
        assert (written, example.answer) == (steps, answer)


@pytest.mark.parametrize("name", HARDER)
def test_splits_share_no_question_whatever_the_seed(name):
    splits = [
        {" ".join(e.question.split()) for seed in (0, 1) for e in rows(name, split, seed)}
        for split in ("train", "validation", "test")
    ]
    assert len(set.union(*splits)) == sum(map(len, splits))


@pytest.mark.parametrize("name", HARDER)
def test_seeded_and_held_out_rows_distinct(name):
    for split in ("train", "validation", "test"):
        assert content_hash(rows(name, split)) == content_hash(rows(name, split)) != content_hash(rows(name, split, 1))
        assert len({e.id for e in rows(name, split)}) == SIZES[f"{split[:3] if split == 'validation' else split}_size"]
    assert len({e.question for e in rows(name, "test")}) == SIZES["test_size"]


def test_both_forms_of_a_long_chain_are_in_the_same_split():
    plain, words = rows("long_chains", "test"), rows("long_chains_nl", "test")
    assert [evaluate_chain(e) for e in plain] == [evaluate_chain(e) for e in words]


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_every_number_of_a_long_chain_has_so_many_digits(digits):
    """Multipliers excepted, which are one digit."""
    for example in rows("long_chains", "test", digits=digits, min_steps=3):
        numbers = re.findall(r"(?<![*\d])\d+", " ".join([example.question, *example.steps, example.answer]))
        assert {len(number) for number in numbers} == {digits}
    signs = Counter("".join(re.findall(r"[-+*]", " ".join(e.question for e in rows("long_chains", "train")))))
    assert min(signs.values()) > 0.1 * sum(signs.values())


def test_long_chains_are_the_papers_regime():
    """23 to 53 tokens of thought (a step has 8, or 7 where it multiplies), M = 24, the last step left out."""
    recipe = load_recipe("long_chains")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(resources.files("kava") / "assets/embedded")
    examples = Generator("long_chains", recipe.dataset.generator.model_copy(update=SIZES)).split("test")
    lengths = [len(encoded.cot) for encoded in Encoder(tokenizer, drop_last_step=False).encode_batch(examples)]
    assert min(lengths) >= 23
    assert max(lengths) == 53
    assert recipe.latent.num_tokens == 24
    assert recipe.dataset.drop_last_step


def test_neither_depth_nor_place_nor_number_tells_what_can_be_reached():
    right = Counter()
    examples = rows("reachability", "train", train_size=4000)
    for example in examples:
        *edges, query = example.question.removesuffix("?").split(";")
        pair = [edge.split(">") for edge in edges]
        first, second = query.partition(":")[2].split("|")
        facts = {
            "first": first, "larger": max(first, second),
            "more edges below": max((first, second), key=lambda name: sum(a == name for a, _ in pair)),
            "its edge is written first": next(b for _, b in pair if b in (first, second)),
        }  # fmt: skip
        right.update(fact for fact, name in facts.items() if name == example.answer)
    for count in right.values():
        assert count / len(examples) == pytest.approx(0.5, abs=0.03)


def test_the_rows_of_icot(tmp_path):
    """A row of the validation file of 4 x 4 digits (github.com/da03/implicit_chain_of_thought, MIT, Yuntian Deng)."""
    line = (
        "5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 ) "
        "+ 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1"
    )
    question, steps, answer = TASKS["multiplication"]("multiplication", GeneratorConfig(digits=4)).texts((2365, 4347))
    assert f"{question}||{' '.join(steps)} #### {answer}" == line
    (tmp_path / "valid.txt").write_text(line + "\n", encoding="utf-8")
    ((_, row),) = TextRows(tmp_path / "valid.txt")
    assert (row["question"].strip(), row["steps"].strip(), row["answer"].strip()) == (question, " ".join(steps), answer)


@pytest.mark.parametrize(
    ("name", "changes", "message", "hint"),
    [
        ("reachability", {"max_steps": 8}, "two paths of 8 edges need 18 nodes", "nodes"),
        ("multiplication", {"digits": 1}, "digits is 1", "at least 2"),
    ],
)
def test_settings_that_make_no_problem(name, changes, message, hint):
    with pytest.raises(DataError, match=message) as caught:
        rows(name, "train", **changes)
    assert hint in str(caught.value.hint)


def test_a_product_has_as_many_steps_as_digits():
    generator = Generator("multiplication", GeneratorConfig(digits=3))
    assert [len(e.steps) for e in generator.of_length("test", 3, 5)] == [3] * 5
    with pytest.raises(DataError, match="multiplied in as many steps, not in 2"):
        generator.of_length("test", 2, 5)


def test_fewer_problems_than_asked_for(caplog):
    """There are 8,100 products of two digits, 15 % of them for testing; chains of one digit and one step are fewer."""
    products = rows("multiplication", "test", digits=2, test_size=5000)
    chains = rows("long_chains", "test", digits=1, min_steps=1, max_steps=1, test_size=5000)
    assert [e.question for e in products] != sorted(e.question for e in products)
    assert 1100 < len(products) < 1330
    assert 0 < len(chains) < 30
    assert f"only {len(chains)} distinct test problems" in caplog.text
    with pytest.raises(DataError, match=f"there are {len(chains)} to draw from"):
        Generator("long_chains", GeneratorConfig(digits=1)).of_length("test", 1, len(chains) + 1)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["dataset.name=long_chains", "dataset.generator.modulus=7"], "have a modulus"),
        (["dataset.generator.digits=3"], "only long chains and multiplication have it"),
        (["dataset.name=multiplication", "dataset.generator.max_steps=2"], "as many steps as dataset.generator.digits"),
        (["dataset.name=long_chains", "dataset.generator.nodes=12"], "only reachability has a graph"),
        (
            ["dataset.name=reachability", "dataset.cot_type=natural_language", "dataset.generator.digits=3"],
            "only long chains",
        ),
    ],
)
def test_settings_of_another_set_are_refused(words, reason):
    with pytest.raises(ConfigError, match=reason):
        load_recipe("embedded", words)


@pytest.mark.parametrize("word", ["digits=0", "digits=10", "nodes=3", "nodes=91", "digits=two"])
def test_values_out_of_range_are_one_line(word):
    with pytest.raises(ConfigError, match=f"dataset.generator.{word.partition('=')[0]} = "):
        load_recipe("multiplication" if "digits" in word else "reachability", [f"dataset.generator.{word}"])


def test_steps_of_a_graph_are_a_walk():
    for example in rows("reachability", "test"):
        assert all(a.split(">")[1] == b.split(">")[0] for a, b in pairwise(example.steps))

"""Annotated rows drawn again: every equation right and traced, implausible numbers never, unknown roles refused."""

import json
import random
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.data.equations import NoRedrawError, value_of
from kava.data.example import Example
from kava.data.load import load_file
from kava.data.redraw import Redraw, redraw

CLIPS = (
    "Mia sold 48 clips in April, and then she sold half as many clips in May. How many clips did Mia sell in all?",
    ("<<48/2=24>>", "<<48+24=72>>"), "72",
)  # fmt: skip
SHOP = (
    "A shop sold 1,200 pens at $1.50 each, and 30% of the money was profit. How much was it in dollars?",
    ("<<1200*1.50=1800>>", "<<1800*30/100=540>>"), "540",
)  # fmt: skip
AGES = ("Tom is 14 years old and Ann 20 years old. How old will the two be together in 3 years?",
        ("<<14+20=34>>", "<<3*2=6>>", "<<34+6=40>>"), "40")  # fmt: skip
WEEK = ("Leo runs 6 days a week for 5 weeks, 4 miles a day. How many miles is that?", ("<<6*5*4=120>>",), "120")
ROWS = [CLIPS, SHOP, AGES, WEEK]


def draws(row, count=60):
    pattern = Redraw(*row)
    return [new for i in range(count) if (new := pattern.draw(random.Random(i))) is not None]


def numbers(text: str) -> list[Decimal]:
    return [Decimal(word.replace(",", "")) for word in re.findall(r"\d[\d,]*\.?\d*|\.\d+", text)]


@pytest.mark.parametrize("row", ROWS)
def test_every_equation_is_right_by_its_own_text(row):
    """Python's own arithmetic on decimals; each number comes from the question, an earlier result or a word."""
    made = draws(row)
    assert len({question for question, _, _ in made}) > 10
    for question, steps, answer in made:
        known = [*numbers(question), Decimal(2), Decimal(100)]
        for step in steps:
            left, right = step.removeprefix("<<").removesuffix(">>").split("=")
            assert eval(re.sub(r"(\d+\.?\d*)", r"Decimal('\1')", left)) == Decimal(right)
            assert all(number in known for number in numbers(left))
            known.append(Decimal(right))
        assert Decimal(answer) == known[-1]
        assert re.sub(r"[\d,.]+", "", question) == re.sub(r"[\d,.]+", "", row[0])


def test_what_is_implausible_is_never_drawn():
    for question, steps, answer in draws(SHOP) + draws(CLIPS) + draws(AGES) + draws(WEEK):
        assert Decimal(answer) > 0
        results = [Decimal(step.rpartition("=")[2].removesuffix(">>")) for step in steps]
        assert all(result == int(result) > 0 for result in results)  # they were whole
        if match := re.search(r"(\d+)%", question):
            assert int(match[1]) < 100
        if match := re.search(r"(\d+) days a week", question):
            assert int(match[1]) <= 7
    ordered = [numbers(question) for question, _, _ in draws(AGES)]
    assert all(three < tom < ann for tom, ann, three in ordered)


def test_who_has_more_has_more_still():
    row = ("Ann juggles 5 balls 80 times and Ben 4 balls 101 times. How often does the winner catch one?",
           ("<<5*80=400>>", "<<4*101=404>>"), "404")  # fmt: skip
    made = draws(row, 300)
    assert made
    for _, steps, answer in made:
        first, second = (Decimal(step.rpartition("=")[2].removesuffix(">>")) for step in steps)
        assert first < second == Decimal(answer)


def test_numbers_are_written_as_they_were():
    questions = [question for question, _, _ in draws(SHOP)]
    assert all(
        re.search(r"sold \d,\d00 pens at \$\d\.\d[05] each|sold \d00 pens at", question) for question in questions
    )
    assert any("," in question for question in questions)


@pytest.mark.parametrize(
    ("question", "steps", "answer", "why"),
    [
        ("She has 3 hens.", (), "3", "no equation"),
        ("She has 3 hens and 4 cows.", ("<<3+4=8>>",), "8", "rounded or wrong"),
        ("10 cakes for 3 boys.", ("<<10/3=3.33>>",), "3.33", "rounded or wrong"),
        ("She has 3 hens and 4 cows.", ("<<3+4=7>>",), "9", "does not end in the answer"),
        ("She has 3 hens and 4 cows.", ("<<3+4+5=12>>",), "12", "neither from the question nor from an earlier"),
        ("3 hens, 4 cows, 7 pigs.", ("<<3+4=7>>", "<<7+7=14>>"), "14", "is also a result"),
        ("3 hens, 7 cows, half of the rest.", ("<<7-5=2>>", "<<3*2=6>>"), "6", "neither from the question"),
        ("5 hens, 7 cows, two of 9 pigs.", ("<<7-5=2>>", "<<9*2=18>>"), "18", "also a result"),
        ("3 hens, 4 cows, 2 pigs, 5 cats.", ("<<3+4=7>>", "<<2+5=7>>", "<<7+7=14>>"), "14", "same result"),
        ("3 hens, 4 cows, 5 pigs.", ("<<3+4=7>>",), "7", "in no equation"),
        ("6 jars for $5, sold for 20% more.", ("<<6/5=1.2>>", "<<1.2/1.2=1>>"), "1", "percentage in another form"),
        ("8 cups and half of 6.", ("<<6/2=3>>", "<<8=8>>"), "8", "no arithmetic"),
        ("There are 16 ounces in a pound.", ("<<16*100=1600>>",), "1600", "neither from"),
        ("$1, and there are 16 ounces in a pound.", ("<<16*100=1600>>",), "1600", "no number to draw"),
        (
            "5 hours a day, 9 cups an hour, on each weekday.",
            ("<<5*9=45>>", "<<45*5=225>>"),
            "225",
            "may also be a word's",
        ),
        ("5 hours a day, 9 cups an hour, Monday to Friday.", ("<<5*9=45>>", "<<45*5=225>>"), "225", "more often than"),
        ("2 hens, twice as many cows.", ("<<2*2=4>>",), "4", "may also be a word's"),
        ("In 1999 a 3rd hen came to 1/2 of 1.", ("<<1999-3=1996>>",), "1996", "no number to draw"),
        ("3 hens and 3 cows.", ("<<3-3=0>>",), "0", "zero or negative"),
        ("3 hens and 4 cows.", ("<<x+4=7>>",), "7", "no arithmetic"),
        ("3 hens and 4 cows.", ("<<3(4)=12>>",), "12", "no arithmetic"),
        ("3 hens and 4 cows.", ("<<3**4=81>>",), "81", "no arithmetic"),
    ],
)
def test_rows_of_unknown_numbers_are_refused(question, steps, answer, why):
    with pytest.raises(NoRedrawError, match=why):
        Redraw(question, steps, answer)


def test_values():
    assert value_of("(3+4)*.5-1/3") == Fraction(7, 2) - Fraction(1, 3)
    assert value_of("-3+5.") == 2


def test_seeded_and_no_question_twice():
    examples = [Example(f"own/train/{i}", *row) for i, row in enumerate(ROWS)]
    first, again, other = (redraw(examples, 5, seed, progress=False) for seed in (0, 0, 1))
    assert first.rows == again.rows != other.rows
    questions = [row["question"] for row in first.rows]
    assert len(set(questions)) == len(questions) >= 15
    assert not set(questions) & {example.question for example in examples}


def write_rows(path: Path) -> Path:
    lines = [{"question": q, "answer": "\n".join([f"so {s}" for s in steps]) + f"\n#### {a}"} for q, steps, a in ROWS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_command_writes_rows_that_are_read_back(tmp_path, capsys):
    source, target = write_rows(tmp_path / "rows.jsonl"), tmp_path / "new" / "train.jsonl"
    assert main(["data", "redraw", str(source), str(target), "--copies", "3", "--quiet"]) == 0
    summary = json.loads(capsys.readouterr().out)
    examples = load_file(target)
    assert summary["rows"] == len(examples) > 6
    assert all(example.steps[0].startswith("<<") for example in examples)
    assert main(["data", "redraw", str(source), str(target), "--copies", "3", "--quiet"]) == 0  # its own file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{rows}", "{folder}/new.csv"], "is no .jsonl file"),
        (["{rows}", "{rows}"], "is an input"),
        (["{plain}", "{folder}/new.jsonl"], "none of 1 rows can be drawn again"),
        (["chains", "{folder}/new.jsonl"], "is generated"),
        (["{folder}/none.jsonl", "{folder}/new.jsonl"], "no such file"),
        (["{rows}", "{folder}/new.jsonl", "--copies", "0"], "--copies"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, message):
    rows, plain = write_rows(tmp_path / "rows.jsonl"), tmp_path / "plain.jsonl"
    plain.write_text('{"question": "3 hens and 4 cows?", "steps": ["3+4+9=16"], "answer": "16"}\n', encoding="utf-8")
    before = rows.read_bytes()
    filled = [word.format(rows=rows, plain=plain, folder=tmp_path) for word in words]
    assert main(["data", "redraw", *filled]) == 2
    assert message in capsys.readouterr().err
    assert rows.read_bytes() == before
    assert not (tmp_path / "new.jsonl").exists()

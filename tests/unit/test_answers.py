"""The answer reader, by examples."""

from __future__ import annotations

from fractions import Fraction

import pytest

from kava.answers import equal, flexible, number, strict

# text, what is marked as the answer, what is read in the end
READ = [
    ("The answer is: 18", "18", "18"),
    ("The answer is: 18.", "18", "18"),
    ("The answer is:18<|eot_id|>", "18", "18"),
    ("The answer is: 18<eos><pad>4", "18", "18"),
    ("the answer is 18 dollars", "18", "18"),
    ("The answer is:\n18\n\nQ: 3 apples", "18", "18"),
    ("The answer is: **1,234**", "1234", "1234"),
    ("The answer is: -3", "-3", "-3"),
    ("The answer is: \u22123", "-3", "-3"),
    ("The answer is: - 3", "-3", "-3"),
    ("The answer is: $5.00", "5.00", "5.00"),
    ("The answer is: $ 5", "5", "5"),
    ("The answer is: -$5", "-5", "-5"),
    ("The answer is: $-5", "-5", "-5"),
    ("The answer is: \u20ac7.50 each", "7.50", "7.50"),
    ("The answer is: +7", "7", "7"),
    ("The answer is: 3/4", "3/4", "3/4"),
    ("The answer is: 50 %", "50%", "50%"),
    ("The answer is: 50% of 8", "50%", "50%"),
    ("The answer is: 50 percent", "50%", "50%"),
    ("The answer is: 1e3", "1e3", "1e3"),
    ("The answer is: .5", ".5", ".5"),
    ("The answer is: -.5", "-.5", "-.5"),
    ("The answer is: 12,345,678.25", "12345678.25", "12345678.25"),
    ("The answer is: 5 and 6", "5", "5"),
    ("The answer is: 4. No, wait. The answer is: 5", "5", "5"),
    ("3+4=7 7*2=14 The answer is: 14", "14", "14"),
    ("She pays 9 + 9 = 18.\n#### 72", "72", "72"),
    ("#### -1,000", "-1000", "-1000"),
    # a mark with no number right behind it marks nothing
    ("The answer is: about 18", None, "18"),
    ("The answer is: x = 18", None, "18"),
    ("3+4=7 The answer is:", None, "7"),
    ("The answer is: none", None, None),
    ("The answer is: 12:30", None, None),
    # LaTeX
    (r"so \boxed{1,000} of 3", "1000", "1000"),
    (r"\boxed{1{,}000}", "1000", "1000"),
    (r"\boxed{\frac{3}{4}}", "3/4", "3/4"),
    (r"\boxed{-\dfrac{3}{4}}", "-3/4", "-3/4"),
    (r"\boxed{\$5.00}", "5.00", "5.00"),
    (r"\boxed{50\%}", "50%", "50%"),
    (r"\boxed{x = 18 \text{ dollars}}", "18", "18"),
    (r"\boxed{} but 4", None, "4"),
    (r"\boxed{4} The answer is: 5", "5", "5"),
    (r"The answer is: \boxed{5}", "5", "5"),
    (r"The answer is: \(5\)", "5", "5"),
    # nothing marked
    ("", None, None),
    ("no number here", None, None),
    ("5 and 6", None, "6"),
    ("it is -3", None, "-3"),
    ("it is 1,234 dollars.", None, "1234"),
    ("1, 2, 3", None, "3"),
    ("4-2", None, "2"),
    ("4 - 2", None, "2"),
    ("4 -2", None, "2"),
    ("(4+1)-2", None, "2"),
    ("4-2=-6", None, "-6"),
    ("4-2 = - 6", None, "-6"),
    ("5*-2", None, "-2"),
    ("use GPT-2", None, "2"),
    ("- 3 apples\n- 4 pears", None, "4"),
    ("2-3 apples", None, "3"),
    ("at 12:30", None, None),
    ("6 people at 12:30", None, "6"),
    ("2020-01-02", None, "02"),
    ("version 1.2.3", None, "3"),
    ("3eggs", None, "3"),
    ("16 / 4 = 4", None, "4"),
    ("100% of 3/4", None, "3/4"),
]


@pytest.mark.parametrize(("text", "marked", "read"), READ)
def test_what_is_read(text, marked, read):
    assert strict(text) == marked
    assert flexible(text) == read


FORMS = [
    ("1,234", 1234), ("-3", -3), ("$5.00", 5), ("3/4", Fraction(3, 4)), ("50 %", Fraction(1, 2)), ("1e3", 1000),
    ("2.75", Fraction(11, 4)), ("-0.5", Fraction(-1, 2)), ("5 5 6 0", 5560), ("0 0 6 0 8 2", 6082),
]  # fmt: skip
PLACES = {
    "cue": "The answer is: {}",
    "cue, full stop": "The answer is: {}.",
    "two numbers": "The answer is: {} and not 99",
    "another before": "First 98. The answer is: {}",
    "####": "97 of them\n#### {}",
    "boxed": "so \\boxed{{{}}} of 96",
    "nothing": "it must be {}",
    "nothing, full stop": "95 or it must be {}.",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("form", "value"), FORMS)
def test_every_form_in_every_place(form, value, place):
    text = PLACES[place].format(form)
    assert number(flexible(text)) == value
    assert number(strict(text)) == (None if place.startswith("nothing") else value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234), ("-3", -3), ("$5.00", 5), ("-$5", -5), ("$-5", -5), ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)), ("50 %", Fraction(1, 2)), ("1e3", 1000), ("1.23e-05", Fraction(123, 10**7)),
        (".5", Fraction(1, 2)), ("18 dollars", 18), ("1234.0", 1234), ("-9867630.0", -9867630), ("\u22127", -7),
        ("1/0", None), ("", None), (None, None), ("twelve", None), ("12:30", None), ("5 5 6 0 apples", 5560), ("5 5 6", 5),
        ("12 5 6 0 1", 12), ("5 5 6 0 1.5", 5), ("5 5 6 0 12", 5), ("2 3/4", 2), ("5 5 6 0 - 1", 5560),
        ("9" * 5000, None), ("1e999", 10**999),
    ],
)  # fmt: skip
def test_values(text, value):
    assert number(text) == value


SAME = [
    ("1,234", "1234.0"), ("18", "18.00"), ("$18", "18"), ("18 dollars", "18"), ("-9867630", "-9867630.0"),
    ("0.0000123", "1.23e-05"), ("3/4", "0.75"), ("0.333333333", "1/3"), ("1e3", "1000"), ("1415.384615", "1415.3846153846155"),
    ("50%", "50"), ("50%", "0.5"), ("50", "50 %"), ("50 percent", "50%"), ("0", "0"), ("-0", "0"), ("0 5 6 0", "0 5 6 0"),
]  # fmt: skip
DIFFERENT = [
    ("1", "1,234"), ("3", "-3"), ("18", "18.5"), ("12345678", "12345679"), ("1.3e-05", "1.23e-05"), ("0", "1.23e-05"),
    ("4932828", "4932828.5"), ("0.33", "1/3"), ("50", "0.5"), ("50%", "5"), ("50%", "0.5%"), ("1%", "100%"),
    (None, "5"), ("5", None), (None, None), ("five", "5"),
    ("0 0 5 6 0", "0 5 6 0"), ("5 5 6 0", "5560"), ("5 5 6 0", "5 5 6 1"), ("5 5 6 0", "5"), ("5 5 6", "5 5 6 0"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SAME)
def test_equal(left, right):
    assert equal(left, right)
    assert equal(right, left)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_not_equal(left, right):
    assert not equal(left, right)
    assert not equal(right, left)

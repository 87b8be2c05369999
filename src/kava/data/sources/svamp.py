"""SVAMP (ChilleD/SVAMP, MIT, Arkil Patel): 1,000 rows; 300 of them are the hub's test split.

    {"Body": "Each pack of dvds costs 76 dollars. ...", "Question": "How much do you have to pay ...?", "Answer": 51.0}

The question is Body and Question with a space between them, unchanged otherwise. No steps that we use.
"""

from kava.data.rows import Parts, Row, answer, text


def parse(row: Row, where: str, cot_type: str) -> Parts:
    question = f"{text(row, ('Body',), where)} {text(row, ('Question',), where)}"
    return question, (), answer(row, ("Answer",), where)

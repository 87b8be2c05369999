"""Cases about rows of data: one odd line beside right ones, or a few bytes changed."""

from behaviour import Case
from hypothesis import strategies as st

ROW = '{"question": "%s", "steps": ["1+1=2"], "answer": "2"}'
RIGHT_ROWS = "".join(
    f'{{"question": "{n}+1?", "steps": ["{n}+1={n + 1}"], "answer": "{n + 1}"}}\n' for n in range(3)
).encode()
# a line beside right ones, and whether it may be accepted
LINES: dict[str, tuple[bytes, bool]] = {
    "a list": (b"[]", False),
    "a number": (b"1", False),
    "null": (b"null", False),
    "an end too early": (b'{"question": "1?", "st', False),
    "two objects": ((ROW % "7?" + ROW % "8?").encode(), False),
    "a lone surrogate": ((ROW % "\\ud800?").encode(), False),
    "a NUL": ((ROW % "\\u0000?").encode(), False),
    "a raw NUL": ((ROW % "\0?").encode(), False),
    "Latin-1": ((ROW % "caf\u00e9?").encode("latin-1"), False),
    "UTF-16": ((ROW % "7?").encode("utf-16"), False),
    "brackets": (b"[" * 100_000, False),
    "brackets in a field": (b'{"question": "1?", "steps": ' + b"[" * 100_000 + b"]" * 100_000 + b', "answer": "2"}', False),
    "a number of 5,000 digits": (b'{"question": "1?", "steps": [], "answer": ' + b"9" * 5000 + b"}", False),
    "a number of 5,000 digits as text": (b'{"question": "1?", "steps": [], "answer": "' + b"9" * 5000 + b'"}', True),
    "no question": (b'{"steps": [], "answer": "2"}', False),
    "no answer": (b'{"question": "1?", "steps": []}', False),
    "an empty question": ((ROW % "").encode(), False),
    "a question of spaces": ((ROW % "  ").encode(), False),
    "a question that is a number": (b'{"question": 1, "steps": [], "answer": "2"}', False),
    "a question that is a list": (b'{"question": ["1?"], "steps": [], "answer": "2"}', False),
    "an answer that is a list": (b'{"question": "1?", "steps": [], "answer": ["2"]}', False),
    "an answer that is null": (b'{"question": "1?", "steps": [], "answer": null}', False),
    "an answer that is true": (b'{"question": "1?", "steps": [], "answer": true}', False),
    "an answer that is no number": (b'{"question": "1?", "steps": [], "answer": NaN}', False),
    "steps that are a mapping": (b'{"question": "1?", "steps": {}, "answer": "2"}', False),
    "steps that are numbers": (b'{"question": "1?", "steps": [1], "answer": "2"}', False),
    "steps that are null": (b'{"question": "1?", "steps": [null], "answer": "2"}', False),
    "a repeated key": (b'{"question": "1?", "question": "2?", "steps": [], "answer": "2"}', False),
    "an id that is a mapping": (b'{"id": {}, "question": "1?", "steps": [], "answer": "2"}', False),
    "an unknown field": (b'{"question": "1?", "stpes": ["1+1=2"], "answer": "2"}', False),
    "an escape sequence": ((ROW % "\\u001b[2J?").encode(), True),
    "spaces": (b"   ", True),
    "a byte-order mark": (b"\xef\xbb\xbf" + (ROW % "7?").encode(), True),
    "a line of Windows": ((ROW % "7?").encode() + b"\r", True),
    "other scripts": ((ROW % "\u4e2d\u6587 \U0001f600 \u0661?").encode(), True),
}  # fmt: skip


@st.composite
def rows(draw: st.DrawFn) -> Case:
    """`kava data check` of a file with one odd line, or with a few bytes changed."""
    what, (line, right) = draw(st.sampled_from(list(LINES.items())))
    lines = RIGHT_ROWS.splitlines()
    lines.insert(draw(st.integers(0, 3)), line)
    content = b"\n".join(lines) + draw(st.sampled_from((b"", b"\n")))
    if not draw(st.integers(0, 3)):
        content, right = damaged_bytes(draw, RIGHT_ROWS), True
    return Case(("data", "check", "rows.jsonl"), {"rows.jsonl": content}, wrong="" if right else f"a line is {what}")


def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a byte changed, a part left out, or cut."""
    place = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(("change", "leave out", "cut", "put in")))
    if kind == "cut":
        return content[:place]
    odd = b"" if kind == "leave out" else bytes([draw(st.integers(0, 255))])
    return content[:place] + odd + content[place + (kind != "put in") :]


CASES = rows()

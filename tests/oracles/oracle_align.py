"""Which tokens cover the same characters, and a teacher carried to a student, slowly: loops and fractions, nothing of ours.

What a token covers is a list of pieces (character, from, to), the last two fractions of that character.
"""

from __future__ import annotations

from fractions import Fraction

Piece = tuple[int, Fraction, Fraction]
Rows = list  # nested lists of numbers


def by_bytes(text: str, sizes: list[int], extra: int) -> list[list[Piece]]:
    """Tokens of so many bytes each, one behind the other; the first `extra` bytes are no part of the text."""
    cells = [None] * extra
    for number, character in enumerate(text):
        count = len(character.encode("utf-8"))
        for byte in range(count):
            cells.append((number, Fraction(byte, count), Fraction(byte + 1, count)))
    out, place = [], 0
    for size in sizes:
        out.append([cell for cell in cells[place : place + size] if cell is not None])
        place += size
    assert place == len(cells)
    return out


def by_offsets(text: str, offsets: list[tuple[int, int]], marks: list[bool]) -> list[list[Piece]]:
    """Tokens by the characters they cover; `marks[j]`: token j is nothing but the mark of a space.

    Tokens of one character share it evenly; white space that nobody covers goes to the next token.
    """
    covered: list[list[int]] = []
    for j, (start, end) in enumerate(offsets):
        characters = list(range(start, end))
        if marks[j] and not all(text[c].isspace() for c in characters):
            characters = []
        covered.append(characters)
    out: list[list[Piece]] = []
    for j, characters in enumerate(covered):
        pieces = []
        for c in characters:
            sharing = [k for k in range(len(covered)) if c in covered[k]]
            rank = sharing.index(j)
            pieces.append((c, Fraction(rank, len(sharing)), Fraction(rank + 1, len(sharing))))
        out.append(pieces)
    for c in range(len(text)):
        if text[c].isspace() and not any(c in characters for characters in covered):
            following = c
            while following < len(text) and text[following].isspace():
                if any(following in characters for characters in covered):
                    break
                following += 1
            for j, characters in enumerate(covered):
                if following in characters:
                    if characters[0] == following:
                        out[j].append((c, Fraction(0), Fraction(1)))
                    break
    return out


def iou(left: list[Piece], right: list[Piece]) -> Fraction:
    both = Fraction(0)
    for c, start, end in left:
        for d, begin, stop in right:
            if c == d:
                both += max(Fraction(0), min(end, stop) - max(start, begin))
    total = sum((end - start for _, start, end in left + right), Fraction(0)) - both
    return both / total if both else Fraction(0)


def matrix(student: list[list[Piece]], teacher: list[list[Piece]], threshold: Fraction) -> list[list[Fraction]]:
    out = []
    for mine in student:
        row = [iou(mine, theirs) for theirs in teacher]
        out.append([value if value >= threshold else Fraction(0) for value in row])
    return out


def shares_by_rows(matrix: Rows) -> Rows:
    return [[value / sum(row) if sum(row) else 0 for value in row] for row in matrix]


def shares_by_columns(matrix: Rows) -> Rows:
    sums = [sum(row[j] for row in matrix) for j in range(len(matrix[0]))] if matrix else []
    return [[value / sums[j] if sums[j] else 0 for j, value in enumerate(row)] for row in matrix]


# one sample of one teacher; entries[layer][head][token][dimension]


def carried(
    entries: Rows,
    overlap: Rows,
    layer_map: list[list[tuple[int, float]]],
    size: Rows,
    heads: Rows,
    gain: Rows,
    shift: Rows,
) -> Rows:
    """tokens, layers, head size, heads, scale and shift, one after the other."""
    share = shares_by_rows(overlap)
    num_heads, num_dims = len(entries[0]), len(entries[0][0][0])
    out = []
    for entry in layer_map:
        layer = []
        for s in range(len(heads)):
            tokens = []
            for weights in share:
                vector = []
                for d in range(len(size)):
                    total = 0.0
                    for t in range(num_heads):
                        for e in range(num_dims):
                            for number, part in entry:
                                for j, weight in enumerate(weights):
                                    total += heads[s][t] * size[d][e] * part * weight * entries[number][t][j][e]
                    vector.append(gain[s][d] * total + shift[s][d])
                tokens.append(vector)
            layer.append(tokens)
        out.append(layer)
    return out


def importance(looked: Rows, overlap: Rows, layer_map: list[list[tuple[int, float]]], heads: Rows) -> Rows:
    """looked[layer][head][token] of the teacher, shared out over the student's tokens."""
    share = shares_by_columns(overlap)
    return [
        [
            [
                sum(
                    heads[s][t] * part * share[i][j] * looked[number][t][j]
                    for t in range(len(looked[0]))
                    for number, part in entry
                    for j in range(len(share[i]))
                )
                for i in range(len(share))
            ]
            for s in range(len(heads))
        ]
        for entry in layer_map
    ]


def groups(num_student: int, num_teacher: int) -> list[list[Fraction]]:
    """How much of [i T/S, (i+1) T/S) lies in [t, t+1), over its length."""
    width = Fraction(num_teacher, num_student)
    return [
        [
            max(Fraction(0), min((i + 1) * width, Fraction(t + 1)) - max(i * width, Fraction(t))) / width
            for t in range(num_teacher)
        ]
        for i in range(num_student)
    ]

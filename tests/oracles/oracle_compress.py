"""The compressors once more, slowly: plain loops over batch, head and position on nested lists. Nothing of ours.

Everything is a list: keys[b][h][n][d], mask[b][n], importance[b][h][n]. Padding may hold anything and is never read.
"""

from __future__ import annotations

import math


def dot(left: list[float], right: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


def real(mask_row: list[bool]) -> list[int]:
    """The columns that are not padding, in order."""
    return [n for n, is_real in enumerate(mask_row) if is_real]


def softmax(numbers: list[float]) -> list[float]:
    if not numbers:
        return []
    top = max(numbers)
    raised = [math.exp(x - top) for x in numbers]
    total = math.fsum(raised)
    return [x / total for x in raised]


def importance(queries: list, keys: list, answer_mask: list, mask: list, scale: float) -> list:
    """I[b][h][n]: the group's largest logit, softmax over the real columns, mean over answer tokens."""
    out = []
    for b, columns in enumerate(real(row) for row in mask):
        heads = []
        per_group = len(queries[b]) // len(keys[b])
        for h in range(len(keys[b])):
            row = [0.0] * len(mask[b])
            answers = real(answer_mask[b])
            for a in answers:
                logits = []
                for n in columns:
                    group = [dot(queries[b][h * per_group + r][a], keys[b][h][n]) * scale for r in range(per_group)]
                    logits.append(max(group))
                for n, share in zip(columns, softmax(logits), strict=True):
                    row[n] += share / len(answers)
            heads.append(row)
        out.append(heads)
    return out


def cosine(left: list[float], right: list[float]) -> float:
    return dot(left, right) / (math.sqrt(dot(left, left)) * math.sqrt(dot(right, right)))


def redundancy(keys: list, mask: list) -> list:
    """R[b][h][n] = softmax over n of -(1/N_C) sum_{j != n} cos(k_n, k_j), all pairs written out."""
    out = []
    for b, columns in enumerate(real(row) for row in mask):
        heads = []
        for head in keys[b]:
            means = [-sum(cosine(head[i], head[j]) for j in columns if j != i) / len(columns) for i in columns]
            heads.append(spread(softmax(means), columns, len(mask[b])))
        out.append(heads)
    return out


def centred(keys: list, mask: list) -> list:
    """keys[b][h][n][d] less the mean over the real columns; padding as it is."""
    out = []
    for b, columns in enumerate(real(row) for row in mask):
        heads = []
        for head in keys[b]:
            mean = (
                [math.fsum(head[n][d] for n in columns) / len(columns) for d in range(len(head[0]))] if columns else []
            )
            heads.append([
                [x - m for x, m in zip(key, mean, strict=True)] if n in columns else key for n, key in enumerate(head)
            ])  # fmt: skip
        out.append(heads)
    return out


def spread(numbers: list[float], columns: list[int], width: int) -> list[float]:
    """The numbers at their columns, 0 elsewhere."""
    row = [0.0] * width
    for n, number in zip(columns, numbers, strict=True):
        row[n] = number
    return row


def rkv(keys: list, mask: list, weight: list, lambda_: float) -> list:
    """S = lambda I + (1 - lambda) R."""
    other = redundancy(keys, mask)
    return [
        [[lambda_ * i + (1 - lambda_) * r for i, r in zip(*rows, strict=True)] for rows in zip(*heads, strict=True)]
        for heads in zip(weight, other, strict=True)
    ]


def rkv_original(keys: list, mask: list, weight: list, lambda_: float, threshold: float = 0.5, window: int = 7) -> list:
    """S = lambda maxpool7(I) - (1 - lambda) softmax(mean_i C_ij), C without diagonal and last alike neighbour."""
    out = []
    for b, columns in enumerate(real(row) for row in mask):
        heads = []
        for h, head in enumerate(keys[b]):
            count = len(columns)
            matrix = [[0.0 if i == j else cosine(head[i], head[j]) for j in columns] for i in columns]
            for row in matrix:
                alike = [j for j in range(count) if row[j] > threshold]
                if alike:
                    row[alike[-1]] = 0.0
            mean = [sum(matrix[i][j] for i in range(count)) / count for j in range(count)]
            punished = softmax(mean)
            score = []
            for j in range(count):
                near = range(max(0, j - window // 2), min(count, j + window // 2 + 1))
                smooth = max(weight[b][h][columns[i]] for i in near)
                score.append(lambda_ * smooth - (1 - lambda_) * punished[j])
            heads.append(spread(score, columns, len(mask[b])))
        out.append(heads)
    return out


def best(score: list, allowed: list, keep: int) -> list:
    """index[b][h]: the `keep` allowed columns of largest score (the earlier one of equals), in time order."""
    out = []
    for b, heads in enumerate(score):
        columns = real(allowed[b])
        out.append([sorted(sorted(columns, key=lambda n: (-row[n], n))[:keep]) for row in heads])
    return out


def crop(mask: list, keep: int, side: str) -> list:
    """index[b]: the last (or first) `keep` real columns."""
    out = []
    for row in mask:
        columns = real(row)
        drop = max(0, len(columns) - keep)
        out.append(columns[drop:] if side == "last" else columns[: len(columns) - drop])
    return out


def uniform(mask: list, keep: int) -> list:
    """index[b]: real entries number floor((i + 1/2) N_C / M), all of them where N_C <= M."""
    out = []
    for row in mask:
        columns = real(row)
        places = [math.floor((i + 0.5) * len(columns) / keep) for i in range(keep)]
        out.append(columns if len(columns) <= keep else [columns[n] for n in places])
    return out


def steps(mask: list, result: list, keep: int) -> list:
    """index[b]: the first `keep` real columns that carry a result."""
    return [[n for n in real(row) if result[b][n]][:keep] for b, row in enumerate(mask)]


def full(entries: list, mask: list, keep: int) -> tuple[list, list]:
    """(entries[b][h][slot][d], place[b][slot]): N_C entries resampled linearly in time to min(M, N_C) slots."""
    out, places = [], []
    for b, columns in enumerate(real(row) for row in mask):
        slots = min(keep, len(columns))
        at = [0.0 if slots == 1 else i * (len(columns) - 1) / (slots - 1) for i in range(slots)]
        heads = []
        for head in entries[b]:
            rows = []
            for u in at:
                low = min(int(u), len(columns) - 1)
                high = min(low + 1, len(columns) - 1)
                left, right = head[columns[low]], head[columns[high]]
                rows.append([x + (u - low) * (y - x) for x, y in zip(left, right, strict=True)])
            heads.append(rows)
        out.append(heads)
        places.append(at)
    return out, places

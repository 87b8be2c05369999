"""Layer maps, aggregation, and the losses of direction, arrangement and spread, slowly: nested lists, nothing of ours."""

from __future__ import annotations

import math
from fractions import Fraction


def dot(left: list[float], right: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


def length(vector: list[float]) -> float:
    return math.sqrt(dot(vector, vector))


def cosine(left: list[float], right: list[float]) -> float:
    if length(left) == 0 or length(right) == 0:
        return 0.0
    return dot(left, right) / (length(left) * length(right))


# align


def ratio(num_student: int, num_teacher: int) -> list[dict[int, Fraction]]:
    """Each student layer's place between teacher layers, in fractions."""
    out = []
    for s in range(num_student):
        place = Fraction(s * (num_teacher - 1), num_student - 1) if num_student > 1 else Fraction(num_teacher - 1)
        below = math.floor(place)
        share = {below: 1 - (place - below), below + 1: place - below}
        out.append({layer: weight for layer, weight in share.items() if weight > 0})
    return out


def aggregate(layers: list, method: str, weights: list[float] | None = None) -> list:
    """layers[l][b][h][t][d] -> [b][t][...]"""
    out = []
    for b in range(len(layers[0])):
        rows = []
        for t in range(len(layers[0][b][0])):
            flat = [[x for head in layer[b] for x in head[t]] for layer in layers]
            if method == "concat":
                rows.append([x for vector in flat for x in vector])
                continue
            raised = [math.exp(w) for w in weights] if method == "weighted" else [1.0] * len(flat)
            share = [x / math.fsum(raised) for x in raised]
            rows.append(
                [math.fsum(w * x for w, x in zip(share, column, strict=True)) for column in zip(*flat, strict=True)]
            )
        out.append(rows)
    return out


# direction


def direction(s: list[float], t: list[float], kind: str, beta: float, mse: float) -> float:
    loss = 1 - cosine(s, t)
    if kind == "cosine":
        return loss
    loss += beta * (math.log(length(s)) - math.log(length(t))) ** 2
    if kind == "mercator":
        return loss
    return (1 - mse) * loss + mse * math.fsum((x - y) ** 2 for x, y in zip(s, t, strict=True)) / len(s)


def pairs(student: list, teacher: list, kept: list) -> list[tuple[list[float], list[float]]]:
    """Every kept (student, teacher) of [b][h][m][d]."""
    out = []
    for b in range(len(kept)):
        for h in range(len(kept[b])):
            for m in range(len(kept[b][h])):
                if kept[b][h][m]:
                    out.append((student[b][h][m], teacher[b][h][m]))
    return out


def held_out(student: list, target: list, kept: list) -> dict[str, float]:
    """The meter's numbers over [b][h][m][d], each head with a mean of its own."""
    raw, centred, constant, around, square, apart, size = [], [], [], [], [], [], 0
    of_dims = []
    for h in range(len(kept[0])):
        own = [
            (student[b][h][m], target[b][h][m])
            for b in range(len(kept))
            for m in range(len(kept[b][h]))
            if kept[b][h][m]
        ]
        mean = [math.fsum(column) / len(own) for column in zip(*(t for _, t in own), strict=True)]
        for d, centre in enumerate(mean):
            spread = math.fsum((t[d] - centre) ** 2 for _, t in own)
            of_dims += [math.fsum((s[d] - t[d]) ** 2 for s, t in own) / spread] if spread else []
        for s, t in own:
            s_less = [x - y for x, y in zip(s, mean, strict=True)]
            t_less = [x - y for x, y in zip(t, mean, strict=True)]
            raw.append(cosine(s, t))
            centred.append(cosine(s_less, t_less))
            constant.append(cosine(mean, t))
            around.append(dot(t_less, t_less))
            square.append(dot(t, t))
            gap = [x - y for x, y in zip(s, t, strict=True)]
            apart.append(dot(gap, gap))
            size += len(t)
    return {
        "difference": math.fsum(apart) / size,
        "mean_predictor": math.fsum(around) / size,
        "unexplained": math.fsum(apart) / math.fsum(around),
        "unexplained_by_dim": math.fsum(of_dims) / len(of_dims),
        "cossim": math.fsum(raw) / len(raw),
        "cossim_centred": math.fsum(centred) / len(raw),
        "cossim_mean_predictor": math.fsum(constant) / len(raw),
        "spread": math.sqrt(math.fsum(around) / math.fsum(square)),
    }


# cka


def cka(left: list, right: list, unbiased: bool) -> float:
    """Of one sample's rows left[n][p], right[n][q]; the textbook sums."""
    top = hsic(left, right, unbiased)
    return top / math.sqrt(hsic(left, left, unbiased) * hsic(right, right, unbiased))


def hsic(left: list, right: list, unbiased: bool) -> float:
    n = len(left)
    k = [[dot(a, b) for b in left] for a in left]
    g = [[dot(a, b) for b in right] for a in right]
    if unbiased:  # Song et al. 2012, equation 5
        for i in range(n):
            k[i][i] = g[i][i] = 0.0
        trace = math.fsum(k[i][j] * g[j][i] for i in range(n) for j in range(n))
        sums = math.fsum(map(math.fsum, k)) * math.fsum(map(math.fsum, g))
        through = math.fsum(k[i][j] * g[j][m] for i in range(n) for j in range(n) for m in range(n))
        return (trace + sums / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))
    h = [[(i == j) - 1 / n for j in range(n)] for i in range(n)]
    khgh = product(product(k, h), product(g, h))
    return math.fsum(khgh[i][i] for i in range(n)) / (n - 1) ** 2


def product(left: list, right: list) -> list:
    return [[math.fsum(row[j] * right[j][c] for j in range(len(right))) for c in range(len(right[0]))] for row in left]


# guard


def guard(projected: list, kept: list, reference: list[float], most: float = math.inf) -> float:
    total = 0.0
    for b, row in enumerate(kept):
        rows = [projected[b][m] for m, real in enumerate(row) if real]
        if len(rows) < 2:
            continue
        for d, wanted in enumerate(reference):
            mean = math.fsum(r[d] for r in rows) / len(rows)
            std = math.sqrt(math.fsum((r[d] - mean) ** 2 for r in rows) / (len(rows) - 1))
            if wanted > 0:
                total += (max(0.0, 1 - std / wanted) + max(0.0, std / wanted / most - 1)) / len(reference)
    return total

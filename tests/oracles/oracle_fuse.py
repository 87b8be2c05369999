"""Fusion, similarity, prototypes, entropy and the distances of codes, slowly: nested lists, nothing of ours."""

from __future__ import annotations

import math


def dot(left: list[float], right: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


def softmax(scores: list[float], temperature: float = 1.0) -> list[float]:
    raised = [math.exp(score / temperature) for score in scores]
    return [one / math.fsum(raised) for one in raised]


# fuse


def fused(parts: list, weights: list, present: list) -> list:
    """parts[s][b][h][n][d], weights[b][n][s], present[b][n][s] -> [b][h][n][d]"""
    out = []
    for b in range(len(parts[0])):
        heads = []
        for h in range(len(parts[0][b])):
            rows = []
            for n in range(len(parts[0][b][h])):
                here = [s for s in range(len(parts)) if present[b][n][s]]
                total = math.fsum(weights[b][n][s] for s in here)
                size = range(len(parts[0][b][h][n]))
                if total == 0:
                    rows.append([0.0 for _ in size])
                    continue
                rows.append([math.fsum(weights[b][n][s] / total * parts[s][b][h][n][d] for s in here) for d in size])
            heads.append(rows)
        out.append(heads)
    return out


# routing


def closeness(query: list[float], centre: list[float], metric: str) -> float:
    if metric == "dot":
        return dot(query, centre)
    if metric == "l2":
        return -math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(query, centre, strict=True)))
    return dot(query, centre) / math.sqrt(dot(query, query) * dot(centre, centre))


def similar(query: list, prototypes: list, metric: str, temperature: float, per_layer: bool) -> list:
    """query[l][d] of one sample, prototypes[s][l][c][d] -> [l or 1][s]"""
    table = [
        [max(closeness(query[l], centre, metric) for centre in teacher[l]) for teacher in prototypes]
        for l in range(len(query))  # noqa: E741
    ]
    if not per_layer:
        table = [[math.fsum(column) / len(table) for column in zip(*table, strict=True)]]
    return [softmax(row, temperature) for row in table]


def normed(vector: list[float]) -> list[float]:
    """Mean 0, variance 1 (plus 1e-5)."""
    mean = math.fsum(vector) / len(vector)
    variance = math.fsum((x - mean) ** 2 for x in vector) / len(vector)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in vector]


def linear(weight: list, bias: list | None, vector: list[float]) -> list[float]:
    return [dot(row, vector) + (bias[i] if bias is not None else 0.0) for i, row in enumerate(weight)]


def attention_scores(query: list[float], wq: list, bq: list, wk: list, teachers: list) -> list[float]:
    asked = linear(wq, bq, query)
    return [dot(asked, linear(wk, None, one)) / math.sqrt(len(query)) for one in teachers]


def mlp_scores(query: list[float], layers: list[tuple[list, list]]) -> list[float]:
    for number, (weight, bias) in enumerate(layers):
        query = linear(weight, bias, query)
        if number + 1 < len(layers):
            query = [max(x, 0.0) for x in query]
    return query


# prototypes


def prototype(texts: list, mask: list, method: str) -> list[float]:
    """texts[b][t][d], mask[b][t]; mean, cls, max"""
    real = [[vector for vector, m in zip(text, row, strict=True) if m] for text, row in zip(texts, mask, strict=True)]
    chosen = [text[0] for text in real if text] if method == "cls" else [vector for text in real for vector in text]
    columns = list(zip(*chosen, strict=True))
    return [max(column) if method == "max" else math.fsum(column) / len(column) for column in columns]


# entropy


def entropy(weights: list[float]) -> float:
    return -math.fsum(w * math.log(w) for w in weights if w > 0)


def entropy_push(weights: list, kept: list, target: str) -> float:
    """weights[b][l][n][s], kept[b][n]"""
    total = []
    for sample, real in zip(weights, kept, strict=True):
        layers = []
        for layer in sample:
            found = [entropy(row) for row, keep in zip(layer, real, strict=True) if keep]
            if target == "diverse":
                found = [math.log(len(layer[0])) - one for one in found]
            layers.append(math.fsum(found) / len(found) if found else 0.0)
        total.append(math.fsum(layers) / len(layers))
    return math.fsum(total)


# codes


def codes(student: list, target: list, kept: list, kind: str) -> float:
    """student[b][n][z], target[b][n][z], kept[b][n]"""
    total = 0.0
    for left, right, real in zip(student, target, kept, strict=True):
        s = [row for row, keep in zip(left, real, strict=True) if keep]
        t = [row for row, keep in zip(right, real, strict=True) if keep]
        if len(s) < (2 if kind == "barlow" else 1):
            continue
        if kind == "barlow":
            total += barlow(s, t)
        elif kind == "cosine":
            total += math.fsum(1 - closeness(a, b, "cosine") for a, b in zip(s, t, strict=True)) / len(s)
        else:
            total += math.fsum(closeness(a, b, "l2") ** 2 / len(a) for a, b in zip(s, t, strict=True)) / len(s)
    return total


def barlow(s: list, t: list) -> float:
    left, right = ([normed(list(column)) for column in zip(*side, strict=True)] for side in (s, t))
    out = 0.0
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            c = dot(one, other) / len(one)
            out += (1 - c) ** 2 if i == j else 0.005 * c * c
    return out / len(left)

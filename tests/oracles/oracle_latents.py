"""Jacobi and sequential latents once more, one slot and one number at a time. Nothing of ours.

The toy model is causal and nonlinear: h_i = tanh(sum_{j <= i} mix[i][j] * weight e_j), prj(h) = tanh(back h).
"""

from __future__ import annotations

import math


def apply(matrix: list, vector: list[float]) -> list[float]:
    return [math.fsum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix]


def hidden(embeds: list, slot: int, mix: list, weight: list) -> list[float]:
    """What the model says at `slot`, seeing slots 0..slot."""
    seen = [0.0] * len(weight)
    for j in range(slot + 1):
        for e, x in enumerate(apply(weight, embeds[j])):
            seen[e] += mix[slot][j] * x
    return [math.tanh(x) for x in seen]


def project(vector: list[float], back: list) -> list[float]:
    return [math.tanh(x) for x in apply(back, vector)]


def sequential(first: list[float], slots: int, mix: list, weight: list, back: list) -> list:
    """e_1 given; e_i = prj(h_{i-1}), each made once, from exact ones."""
    embeds = [first]
    for i in range(1, slots):
        embeds.append(project(hidden(embeds, i - 1, mix, weight), back))
    return embeds


def jacobi(embeds: list, rounds: int, mix: list, weight: list, back: list) -> list:
    """All slots at once: each becomes prj of its left neighbour's hidden state of the round before."""
    for _ in range(rounds):
        before = embeds
        embeds = [before[0]]
        for i in range(1, len(before)):
            embeds.append(project(hidden(before, i - 1, mix, weight), back))
    return embeds

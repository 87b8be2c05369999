"""The losses once more, slowly: plain loops, sums and counts, and each distance's derivative. Nothing of ours."""

from __future__ import annotations

import math


def distance(x: float, kind: str) -> tuple[float, float]:
    """(value, derivative) at x = student - teacher."""
    sign = (x > 0) - (x < 0)
    if kind == "l1":
        return abs(x), sign
    if kind == "mse":
        return x * x, 2 * x
    if abs(x) < 1:
        return 0.5 * x * x, x
    return abs(x) - 0.5, sign


def deviation(numbers: list[float]) -> float:
    """The sample standard deviation; 1 where there is none."""
    if len(numbers) < 2:
        return 1.0
    mean = math.fsum(numbers) / len(numbers)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))
    return std if std > 0 else 1.0


def divided(x: float, kind: str, std: float) -> tuple[float, float]:
    """The loss is divided by std (mse: std^2), not its argument."""
    value, slope = distance(x, kind)
    by = std * std if kind == "mse" else std
    return value / by, slope / by


def kv_loss(student: list, teacher: list, kept: list, kind: str, std: bool, scope: str) -> tuple[float, list]:
    """(sum, gradient[b][h][m][d]) over kept slots of one layer's keys, or of its values."""
    pools = []
    for b, heads in enumerate(teacher):
        pools.append([x for h, slots in enumerate(heads) for m, row in enumerate(slots) if kept[b][h][m] for x in row])
    everything = [x for pool in pools for x in pool]
    total, gradient = 0.0, []
    for b, heads in enumerate(student):
        scale = deviation(pools[b] if scope == "sample" else everything) if std else 1.0
        grad_b = []
        for h, slots in enumerate(heads):
            grad_h = []
            for m, row in enumerate(slots):
                slopes = [0.0] * len(row)
                if kept[b][h][m]:
                    for d, x in enumerate(row):
                        value, slopes[d] = divided(x - teacher[b][h][m][d], kind, scale)
                        total += value
                grad_h.append(slopes)
            grad_b.append(grad_h)
        gradient.append(grad_b)
    return total, gradient


def moments_by_dim(batches: list) -> tuple[list, list]:
    """(mean[h][d], std[h][d]) of the kept entries of (entries[b][h][m][d], kept[b][h][m]); std over n, not n - 1."""
    pools: dict = {}
    for entries, kept in batches:
        for b, heads in enumerate(entries):
            for h, slots in enumerate(heads):
                for m, row in enumerate(slots):
                    for d, x in enumerate(row):
                        if kept[b][h][m]:
                            pools.setdefault(h, {}).setdefault(d, []).append(x)
    mean = [[math.fsum(pool) / len(pool) for pool in dims.values()] for dims in pools.values()]
    std = [
        [math.sqrt(math.fsum((x - mean[h][d]) ** 2 for x in pool) / len(pool)) for d, pool in dims.items()]
        for h, dims in pools.items()
    ]
    return mean, std


def kv_loss_by_dim(student: list, teacher: list, kept: list, kind: str, moments: tuple) -> tuple[float, list]:
    """(sum, gradient[b][h][m][d]); the distance of (s - mean) / std to (t - mean) / std, 0 where std is 0."""
    mean, std = moments
    total, gradient = 0.0, []
    for b, heads in enumerate(student):
        grad_b = []
        for h, slots in enumerate(heads):
            grad_h = []
            for m, row in enumerate(slots):
                slopes = [0.0] * len(row)
                for d, x in enumerate(row):
                    if kept[b][h][m] and std[h][d] > 0:
                        own, other = ((y - mean[h][d]) / std[h][d] for y in (x, teacher[b][h][m][d]))
                        value, slope = distance(own - other, kind)
                        slopes[d] = slope / std[h][d]
                        total += value
                grad_h.append(slopes)
            grad_b.append(grad_h)
        gradient.append(grad_b)
    return total, gradient


def codi_loss(student: list, teacher: list, kind: str, layerwise: bool, scope: str) -> tuple[float, list]:
    """(sum, gradient[b][l][e]) over samples, layers and width."""
    batch, layers = len(teacher), len(teacher[0])
    total, gradient = 0.0, []
    for b in range(batch):
        grad_b = []
        for layer in range(layers):
            pool = []
            for other in range(batch) if scope == "batch" else [b]:
                for which in [layer] if layerwise else range(layers):
                    pool += teacher[other][which]
            scale = deviation(pool)
            pairs = zip(student[b][layer], teacher[b][layer], strict=True)
            both = [divided(s - t, kind, scale) for s, t in pairs]
            total += math.fsum(value for value, _ in both)
            grad_b.append([slope for _, slope in both])
        gradient.append(grad_b)
    return total, gradient


def cross_entropy(hidden: list, targets: list[int], head: list) -> tuple[float, list, list]:
    """(sum of -log p, gradient[i][e] of hidden, gradient[v][e] of the head's weight); logits[i][v] = head[v] . h[i]."""
    total = 0.0
    grad_hidden = [[0.0] * len(row) for row in hidden]
    grad_head = [[0.0] * len(row) for row in head]
    for i, row in enumerate(hidden):
        logits = [math.fsum(w * x for w, x in zip(weights, row, strict=True)) for weights in head]
        top = max(logits)
        log_sum = top + math.log(math.fsum(math.exp(z - top) for z in logits))
        total += log_sum - logits[targets[i]]
        for v, z in enumerate(logits):
            error = math.exp(z - log_sum) - (v == targets[i])
            for e, x in enumerate(row):
                grad_hidden[i][e] += error * head[v][e]
                grad_head[v][e] += error * x
    return total, grad_hidden, grad_head


def weighted(totals: list[float], counts: list[float], weights: list[float]) -> float:
    """sum of weight * total / count, a term without a count being 0."""
    loss = 0.0
    for total, count, weight in zip(totals, counts, weights, strict=True):
        loss += weight * total / count if count else 0.0
    return loss

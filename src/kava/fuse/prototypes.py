"""Prototypes of teachers (one vector each, or a few) and the similarity of a question to them."""

import torch
from torch import Tensor

from kava.errors import DataError
from kava.registry import check_known
from kava.shapes import at_least_float32

METHODS = ("mean", "cls", "max", "kmeans")
METRICS = ("cosine", "dot", "l2")
ALIASES = {"euclidean": "l2"}
TINY = 1e-8
ROUNDS = 100  # of k-means, at most


def compute_teacher_prototype(
    kvs: Tensor,
    method: str = "mean",
    attention_mask: Tensor | None = None,
    num_clusters: int = 8,
    seed: int = 0,
) -> Tensor:
    """A teacher's prototype from its vectors of a corpus [B, T, d]: [d], kmeans [K, d]. [L, B, T, d] gives one per layer.

    mean    over all real tokens          cls     over the first real token of each text
    max     per dimension over them       kmeans  K centres of them
    """
    check_known("prototype", method, METHODS)
    if kvs.dim() == 4:
        each = [compute_teacher_prototype(layer, method, attention_mask, num_clusters, seed) for layer in kvs]
        return torch.stack(each)
    kvs = at_least_float32(kvs)
    real = torch.ones(kvs.shape[:2], dtype=torch.bool, device=kvs.device)
    if attention_mask is not None:
        real = attention_mask.to(torch.bool)
    points = kvs[real]
    if not len(points):
        raise DataError("a prototype of no tokens: every text of the corpus is empty")
    if method == "mean":
        return points.mean(0)
    if method == "max":
        return points.amax(0)
    if method == "cls":
        some = real.any(1)
        return kvs[some, real[some].int().argmax(1)].mean(0)
    return kmeans(points, num_clusters, seed)


def kmeans(points: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """[K, d] centres of points [n, d]: k-means++ start from `seed`, then rounds until no point changes its centre."""
    distinct = len(torch.unique(points, dim=0))
    if num_clusters < 1 or num_clusters > distinct:
        raise DataError(
            f"k-means with {num_clusters} centres, but the corpus has {distinct} different points",
            "take fewer centres (mixture.centres) or more examples (mixture.prototype_examples)",
        )
    work = points.detach().double().cpu()
    centres = _start(work, num_clusters, torch.Generator().manual_seed(seed))
    nearest = torch.full((len(work),), -1)
    for _ in range(ROUNDS):
        distance = torch.cdist(work, centres)
        new = distance.argmin(1)
        if torch.equal(new, nearest):
            break
        nearest = new
        for number in range(num_clusters):
            members = work[nearest == number]
            # an empty cluster restarts at the point farthest from every centre
            centres[number] = members.mean(0) if len(members) else work[distance.min(1).values.argmax()]
    return centres.to(points)


def layered_similarity(query: Tensor, prototypes: Tensor, metric: str = "cosine") -> Tensor:
    """[B, L, S] similarity to the closest centre of each teacher, layer by layer. query [B, L, d]; prototypes [S, L, C, d].

    cosine  q.p / |q||p|, 0 if one of them is 0      dot  q.p      l2 (euclidean)  -|q - p|
    """
    metric = ALIASES.get(metric, metric)
    check_known("similarity", metric, METRICS)
    query, prototypes = at_least_float32(query), at_least_float32(prototypes)
    if metric == "l2":
        gap = query[:, :, None, None] - prototypes.transpose(0, 1)[None]  # [B, L, S, C, d]
        return -gap.norm(dim=-1).amin(-1)
    if metric == "cosine":
        query, prototypes = _unit(query), _unit(prototypes)
    return torch.einsum("bld,slcd->blsc", query, prototypes).amax(-1)


def compute_similarity(query: Tensor, prototypes: Tensor, metric: str = "cosine") -> Tensor:
    """[B, S] from query [B, d] and prototypes [S, d] or [S, C, d]; of several centres the closest counts."""
    centres = prototypes[:, None] if prototypes.dim() == 2 else prototypes
    return layered_similarity(query[:, None], centres[:, None], metric)[:, 0]


def compute_routing_weights(
    query: Tensor, prototypes: Tensor, temperature: float = 1.0, metric: str = "cosine"
) -> Tensor:
    """[B, S] softmax(similarity / temperature)."""
    return torch.softmax(compute_similarity(query, prototypes, metric) / temperature, dim=-1)


def _start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is drawn in proportion to its squared distance from the previous ones."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    for _ in range(count - 1):
        square = torch.cdist(points, points[chosen]).min(1).values.square()
        square[chosen] = 0
        chosen.append(int(torch.multinomial(square, 1, generator=generator)))
    return points[chosen].clone()


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=TINY)

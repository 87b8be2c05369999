"""The explicit line once more, slowly: loops over samples, layers, heads and kept entries, on plain transformers models.

One unpadded sample at a time goes through the model's own forward; keys and values come from its cache, queries from its
query layer. A vector is a 1-D tensor, so that autograd gives the gradients too. Nothing of ours is used; `settings` is
the recipe as plain dicts, `own` the weights beside the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import oracle_compress as compress
import oracle_direction as direction
import torch
from torch import Tensor


@dataclass
class Sample:
    question: list[int]
    cot: list[int]
    result: list[bool]
    cue: list[int]
    answer: list[int]
    eos: int
    id: int


@dataclass
class Read:
    """One sample as a model reads it: keys[l][h][n] and values[l][h][n] of the chain of thought, looked[l][h] [N]."""

    ce: Tensor
    keys: list
    values: list
    looked: list
    cue: list[Tensor]


@dataclass
class Own:
    """What is trained beside the student. projector(part, place, vector) and map(vector) are None where there is none."""

    projector: Callable[[str, int, Tensor], Tensor] | None = None
    map: Callable[[Tensor], Tensor] | None = None
    student_weights: Tensor | None = None
    teacher_weights: Tensor | None = None
    reference: dict[tuple[str, int], Tensor] = field(default_factory=dict)


# reading


def read(lm: Any, sample: Sample) -> Read:
    ids = [*sample.question, *sample.cot, *sample.cue, *sample.answer, sample.eos]
    with _queries(lm, len(ids)) as queries:
        out = lm(torch.tensor([ids]), use_cache=True, output_hidden_states=True)
    first = len(sample.question)
    behind = first + len(sample.cot)
    answers = range(behind + len(sample.cue), len(ids) - 1)
    ce = sum(torch.logsumexp(out.logits[0, i - 1], 0) - out.logits[0, i - 1, ids[i]] for i in range(first, len(ids)))
    keys, values, looked = [], [], []
    for layer, cache in enumerate(out.past_key_values.layers):
        key, value = (part[0, :, first:behind] for part in (cache.keys, cache.values))
        keys.append([list(head) for head in key])
        values.append([list(head) for head in value])
        looked.append([_looked(queries[layer], h, len(key), list(head), answers) for h, head in enumerate(key)])
    last = behind + len(sample.cue) - 1
    return Read(ce, keys, values, looked, [hidden[0, last] for hidden in out.hidden_states[1:]])


def _looked(queries: Tensor, head: int, heads: int, keys: list[Tensor], answers: range) -> Tensor:
    """[N] mean over answer tokens of the softmax of the group's largest logit."""
    if not keys:
        return queries.new_zeros(0)
    group = len(queries) // heads
    shares = []
    for a in answers:
        logits = []
        for key in keys:
            each = [torch.dot(queries[head * group + r, a], key) / math.sqrt(len(key)) for r in range(group)]
            logits.append(torch.stack(each).max())
        shares.append(torch.softmax(torch.stack(logits), 0))
    return torch.stack(shares).mean(0)


@contextmanager
def _queries(lm: Any, length: int) -> Iterator[list[Tensor]]:
    """Per layer [query heads, T, D], after the rotary embedding; there when the forward is done."""
    found: list[Tensor] = []
    handles = []
    if hasattr(lm, "transformer"):
        width, heads = lm.config.n_embd, lm.config.n_head

        def keep(module: Any, inputs: Any, out: Tensor) -> None:
            found.append(out[0, :, :width].reshape(length, heads, -1).transpose(0, 1))

        handles = [block.attn.c_attn.register_forward_hook(keep) for block in lm.transformer.h]
    else:
        heads = lm.config.num_attention_heads
        cos, sin = (part[0] for part in lm.model.rotary_emb(lm.lm_head.weight, torch.arange(length)[None]))

        def keep(module: Any, inputs: Any, out: Tensor) -> None:
            plain = out[0].reshape(length, heads, -1).transpose(0, 1)
            half = plain.shape[-1] // 2
            found.append(plain * cos + torch.cat([-plain[..., half:], plain[..., :half]], -1) * sin)

        for layer in lm.model.layers:
            attention = layer.self_attn
            handles.append(getattr(attention, "q_norm", attention.q_proj).register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


# which layers, which positions


def layer_map(num_student: int, num_teacher: int, strategy: str) -> list[dict[int, float]]:
    if strategy == "skip":
        return [{s * (num_teacher // num_student): 1.0} for s in range(num_student)]
    places = direction.ratio(num_student, num_teacher)
    if strategy == "ratio":
        return [{layer: float(weight) for layer, weight in place.items()} for place in places]
    means = [sum(layer * weight for layer, weight in place.items()) for place in places]
    return [{math.floor(mean + Fraction(1, 2)): 1.0} for mean in means]


def mixed(layers: list, share: dict[int, float]) -> list:
    """[h][n] of several layers added with weights."""
    heads = range(len(layers[0]))
    return [[sum(w * layers[t][h][n] for t, w in share.items()) for n in range(len(layers[0][h]))] for h in heads]


def generator(seed: int, epoch: int, sample: int, salt: int) -> torch.Generator:
    wrap, state = 2**64, 0x9E3779B97F4A7C15
    for number in (seed, epoch, sample, salt):
        state = (state + number * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) % wrap
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % wrap
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % wrap
        state = state ^ (state >> 31)
    return torch.Generator().manual_seed(state >> 1)


def best(score: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda n: (-score[n], n))[:keep])


class Chooser:
    """Which columns are kept, by the recipe's rkv section."""

    def __init__(self, settings: dict, epoch: int):
        self.rkv, self.keep = settings["rkv"], settings["explicit"]["target_len"]
        self.seed, self.epoch = settings["system"]["seed"], epoch

    @property
    def scored(self) -> bool:
        return self.rkv["method"] in ("rkv", "rkv_original")

    def score(self, keys: list, looked: list) -> list[list[float]]:
        """[h][n] of one layer."""
        numbers = [[vector.tolist() for vector in head] for head in keys]
        shares = [[float(x) for x in head] for head in looked]
        kind = compress.rkv if self.rkv["method"] == "rkv" else compress.rkv_original
        return kind([numbers], [[True] * len(keys[0])], [shares], self.rkv["lambda"])[0]

    def unscored(self, sample: Sample) -> list[int]:
        count, method = len(sample.cot), self.rkv["method"]
        if method == "full":
            return list(range(count))
        if method == "crop":
            return compress.crop([[True] * count], self.keep, self.rkv["crop_keep"])[0]
        if method == "uniform":
            return compress.uniform([[True] * count], self.keep)[0]
        if method == "steps":
            return compress.steps([[True] * count], [sample.result], self.keep)[0]
        drawn = torch.rand(count, generator=generator(self.seed, self.epoch, sample.id, 0)).tolist()
        return best(drawn, self.keep)

    def each_head(self, sample: Sample, keys: list, looked: list) -> list[list[int]]:
        """One choice for every head of a layer."""
        if not sample.cot:
            return [[] for _ in keys]
        if not self.scored:
            return [self.unscored(sample) for _ in keys]
        return [best(row, self.keep) for row in self.score(keys, looked)]

    def whole(self, sample: Sample, teacher: Read) -> list[int]:
        """One choice from the mean score of all teacher layers and heads."""
        if not sample.cot or not self.scored:
            return self.unscored(sample) if sample.cot else []
        mean = [0.0] * len(sample.cot)
        for keys, looked in zip(teacher.keys, teacher.looked, strict=True):
            for row in self.score(keys, looked):
                for n, x in enumerate(row):
                    mean[n] += x / len(keys) / len(teacher.keys)
        return best(mean, self.keep)

    def paired(self, chosen: list[list[int]], samples: list[Sample]) -> list[tuple[list[int], list[int], int]]:
        """Of each sample: student columns, target columns, and whose targets they are."""
        out = []
        for b, mine in enumerate(chosen):
            if self.rkv["shuffle"] == "examples":
                other = (b - 1) % len(chosen)
                both = min(len(mine), len(chosen[other]))
                out.append((mine[:both], chosen[other][:both], other))
                continue
            order = list(range(len(mine)))
            if self.rkv["shuffle"] == "time" and len(mine) > 1:
                drawn = generator(self.seed, self.epoch, samples[b].id, 1)
                while order == sorted(order):
                    order = torch.randperm(len(mine), generator=drawn).tolist()
            out.append((mine, [mine[i] for i in order], b))
        return out


# what is compared


@dataclass
class Pair:
    """One kept entry: student and target vector, and its weight."""

    student: Tensor
    target: Tensor
    weight: float


Compared = dict[tuple[str, int, int], list[Pair]]  # (part, place, sample) -> the pairs of all heads


class Comparison:
    def __init__(
        self, settings: dict, own: Own, samples: list[Sample], mine: list[Read], theirs: list[Read], late: bool
    ):
        self.explicit, self.settings, self.own = settings["explicit"], settings, own
        self.samples, self.mine, self.theirs = samples, mine, theirs
        self.direction = settings["projector"]["direction"]
        self.parts = {"both": "kv", "k": "k", "v": "v"}[self.explicit["parts"]]
        self.weighted = self.explicit["attention_weighted"] and late
        self.map = layer_map(len(mine[0].keys), len(theirs[0].keys), self.explicit["layer_map"])

    def pairs(self, chooser: Chooser) -> Compared:
        if self.explicit["form"] == "aggregated":
            return self.aggregated(chooser)
        found: Compared = {}
        whole = [chooser.whole(s, t) for s, t in zip(self.samples, self.theirs, strict=True)]
        for place, layer in enumerate(self.layers):
            keys = [mixed(t.keys, self.map[layer]) for t in self.theirs]
            values = [mixed(t.values, self.map[layer]) for t in self.theirs]
            looked = [mixed(t.looked, self.map[layer]) for t in self.theirs]
            heads = range(len(keys[0]))
            if self.explicit["choose"] == "head":
                each = [chooser.each_head(*facts) for facts in zip(self.samples, keys, looked, strict=True)]
                chosen = [chooser.paired([rows[h] for rows in each], self.samples) for h in heads]
            else:
                shared = chooser.paired(whole, self.samples)
            for b in range(len(self.samples)):
                for part, mine, theirs in (("k", self.mine[b].keys, keys), ("v", self.mine[b].values, values)):
                    if part not in self.parts:
                        continue
                    if self.explicit["choose"] == "head":
                        rows = []
                        for h in heads:
                            left, right, source = chosen[h][b]
                            weights = self.weights([looked[source][h][n] for n in right])
                            for s, t, w in zip(left, right, weights, strict=True):
                                rows.append(Pair(mine[layer][h][s], theirs[source][h][t], w))
                    else:
                        rows = self.shared(part, place, mine[layer], theirs, looked, shared[b])
                    found[part, place, b] = rows
        return found

    @property
    def layers(self) -> list[int]:
        asked = self.explicit["layers"]
        first, last = (0, len(self.map) - 1) if asked is None else map(int, asked.split("-"))
        return list(range(first, last + 1))

    def shared(self, part: str, place: int, mine: list, theirs: list, looked: list, pairs: tuple) -> list[Pair]:
        """The same columns for all heads: head with head, or all heads as one vector through the projector."""
        left, right, source = pairs
        heads = range(len(theirs[source]))
        weights = self.weights([sum(looked[source][h][n] for h in heads) / len(heads) for n in right])
        entries = list(zip(left, right, weights, strict=True))
        if self.direction == "none":
            return [Pair(mine[h][s], theirs[source][h][t], w) for h in heads for s, t, w in entries]
        rows = []
        for s, t, w in entries:
            flat = (torch.cat([head[s] for head in mine]), torch.cat([head[t] for head in theirs[source]]))
            rows.append(Pair(*self.projected(part, place, *flat), w))
        return rows

    def aggregated(self, chooser: Chooser) -> Compared:
        found: Compared = {}
        whole = [chooser.whole(s, t) for s, t in zip(self.samples, self.theirs, strict=True)]
        for b, (left, right, source) in enumerate(chooser.paired(whole, self.samples)):
            mine, theirs = self.mine[b], self.theirs[source]
            every = [head for layer in theirs.looked for head in layer]
            weights = self.weights([sum(head[n] for head in every) / len(every) for n in right])
            for part in self.parts:
                found[part, 0, b] = []
                for s, t, w in zip(left, right, weights, strict=True):
                    student = self.one_vector(mine.keys if part == "k" else mine.values, s, self.own.student_weights)
                    target = self.one_vector(theirs.keys if part == "k" else theirs.values, t, self.own.teacher_weights)
                    found[part, 0, b].append(Pair(*self.projected(part, 0, student, target), w))
        return found

    def one_vector(self, layers: list, n: int, weights: Tensor | None) -> Tensor:
        flat = [torch.cat([head[n] for head in layer]) for layer in layers]
        if not self.explicit["use_all_layers"]:
            return flat[-1]
        if self.explicit["aggregation"] == "concat":
            return torch.cat(flat)
        if self.explicit["aggregation"] == "mean" or weights is None:
            return sum(flat) / len(flat)
        raised = [torch.exp(w) for w in weights]
        return sum(w * vector for w, vector in zip(raised, flat, strict=True)) / sum(raised)

    def projected(self, part: str, place: int, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.own.projector is None:
            return student, target
        if self.direction == "teacher_to_student":
            return student, self.own.projector(part, place, target)
        return self.own.projector(part, place, student), target

    def weights(self, looked: list) -> list[float]:
        """Importance over its mean among the kept entries; all 1 where nothing is weighted."""
        numbers = [float(x) for x in looked]
        if not self.weighted or sum(numbers) == 0:
            return [1.0] * len(numbers)
        return [x * len(numbers) / math.fsum(numbers) for x in numbers]


# distances


def deviation(vectors: list[Tensor]) -> float:
    numbers = [x for vector in vectors for x in vector.tolist()]
    if len(numbers) < 2:
        return 1.0
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)) or 1.0


def elementwise(student: Tensor, target: Tensor, kind: str, std: float) -> Tensor:
    gap = student - target
    if kind == "mse":
        return (gap * gap).sum() / std**2
    size = gap.abs()
    return (size if kind == "l1" else torch.where(size < 1, gap * gap / 2, size - 0.5)).sum() / std


def directed(student: Tensor, target: Tensor, kind: str) -> Tensor:
    long, wide = (torch.sqrt(torch.dot(v, v)) for v in (student, target))
    loss = 1 - torch.dot(student, target) / (long * wide)
    if kind in ("mercator", "hybrid"):
        loss = loss + 0.01 * (torch.log(long) - torch.log(wide)) ** 2
    return 0.8 * loss + 0.2 * ((student - target) ** 2).sum() / len(student) if kind == "hybrid" else loss


def arranged(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Linear CKA of one sample, the textbook way."""
    count = len(left)
    centre = torch.eye(count, dtype=left[0].dtype) - 1 / count
    gram = []
    for side in (left, right):
        matrix = torch.stack([torch.stack([torch.dot(a, b) for b in side]) for a in side])
        gram.append(centre @ matrix @ centre)
    return (gram[0] * gram[1]).sum() / torch.sqrt((gram[0] ** 2).sum() * (gram[1] ** 2).sum())


# the loss


Terms = dict[str, tuple[Tensor, float, float]]  # name -> (sum, count, weight)


def loss(
    settings: dict, own: Own, samples: list[Sample], student: Any, teacher: Any, epoch: int, late: bool
) -> tuple[Tensor, Terms]:
    """The weighted loss, and each term. `late`: the update from which on entries are weighted has come."""
    mine = [read(student, one) for one in samples]
    with torch.no_grad():
        theirs = [read(teacher, one) for one in samples]
    weights, explicit = settings["loss"], settings["explicit"]
    texts = sum(len(one.cot) + len(one.cue) + len(one.answer) + 1 for one in samples)
    terms: Terms = {"ce_student": (sum(one.ce for one in mine), texts, weights["student_ce"])}
    compared = Comparison(settings, own, samples, mine, theirs, late)
    if weights["alpha1_codi"] > 0:
        terms["codi"] = (*_codi(weights, own, compared), weights["alpha1_codi"])
    if explicit["cka_weight"] > 0:
        terms["cka"] = (*_cka(explicit["cka_layers"], compared), explicit["cka_weight"])
    if weights["alpha2_kv"] > 0:
        pairs = compared.pairs(Chooser(settings, epoch))
        terms["kv"] = (*_kv(settings, pairs, compared.parts), weights["alpha2_kv"])
        projector = settings["projector"]
        trained = projector["direction"] == "teacher_to_student" and projector["trainable"]
        if trained and projector["guard"] != "none":
            most = 2.0 if projector["guard"] == "band" else math.inf
            terms["guard"] = (*_guard(own, pairs, most), projector["guard_weight"])
        if weights["kv_loss_type"] == "structural":
            terms["attention"] = (*_attention(compared), 0.5 * weights["alpha2_kv"])
    whole = sum(weight * total / count if count else 0.0 * total for total, count, weight in terms.values())
    return whole, terms


def _kv(settings: dict, compared: Compared, parts: str) -> tuple[Tensor, float]:
    """1/2 (sum_K + sum_V), and how many numbers (or entries) each of the two sums goes over."""
    kind, projector = settings["loss"]["kv_loss_type"], settings["projector"]
    fixed = projector["direction"] != "teacher_to_student" or not projector["trainable"]
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for (part, place, b), rows in compared.items():
        batch = settings["loss"]["std_scope"] == "batch"
        pool = [pair.target for key, other in compared.items() if key[:2] == (part, place) for pair in other
                if batch or key[2] == b]  # fmt: skip
        std = deviation(pool) if settings["loss"]["layerwise_std"] else 1.0
        for pair in rows:
            target = pair.target.detach() if fixed else pair.target
            if kind in ("smooth_l1", "mse", "l1"):
                total = total + pair.weight * elementwise(pair.student, target, kind, std) / len(parts)
                count += len(target) / len(parts)
            else:
                total = total + pair.weight * directed(pair.student, target, kind) / len(parts)
                count += 1 / len(parts)
    return total, count


def _guard(own: Own, compared: Compared, most: float) -> tuple[Tensor, float]:
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for (part, place, _), rows in compared.items():
        if len(rows) < 2:
            continue
        count += 1
        for d, wanted in enumerate(own.reference[part, place].tolist()):
            column = torch.stack([pair.target[d] for pair in rows])
            std = torch.sqrt(((column - column.mean()) ** 2).sum() / (len(rows) - 1))
            if wanted > 0:
                apart = torch.relu(1 - std / wanted) + torch.relu(std / wanted / most - 1)
                total = total + apart / len(own.reference[part, place])
    return total, count


def _codi(weights: dict, own: Own, compared: Comparison) -> tuple[Tensor, float]:
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    targets = [
        [sum(w * theirs.cue[t] for t, w in share.items()) for share in compared.map] for theirs in compared.theirs
    ]
    for b, mine in enumerate(compared.mine):
        for layer, target in enumerate(targets[b]):
            pool = []
            for other in range(len(targets)) if weights["std_scope"] == "batch" else [b]:
                pool += [targets[other][layer]] if weights["layerwise_std"] else targets[other]
            state = mine.cue[layer] if own.map is None else own.map(mine.cue[layer])
            total = total + elementwise(state, target, weights["codi_loss_type"], deviation(pool))
            count += len(target)
    return total, count


def _cka(asked: str, compared: Comparison) -> tuple[Tensor, float]:
    layers = len(compared.map)
    chosen = {"middle": [layers // 2], "last": [layers - 1]}.get(asked) or [int(word) for word in asked.split(",")]
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for mine, theirs, sample in zip(compared.mine, compared.theirs, compared.samples, strict=True):
        if len(sample.cot) < 2:
            continue
        for layer in chosen:
            target = mixed(theirs.keys, compared.map[layer])
            sides = [
                [torch.cat([head[n] for head in heads]) for n in range(len(sample.cot))]
                for heads in (mine.keys[layer], target)
            ]
            total, count = total + 1 - arranged(*sides), count + 1
    return total, count


def _attention(compared: Comparison) -> tuple[Tensor, float]:
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for mine, theirs, sample in zip(compared.mine, compared.theirs, compared.samples, strict=True):
        if not sample.cot:
            continue
        for layer, share in enumerate(compared.map):
            target = mixed(theirs.looked, share)
            for n in range(len(sample.cot)):
                p = sum(head[n] for head in mine.looked[layer]) / len(mine.looked[layer])
                q = sum(head[n] for head in target) / len(target)
                total = total + q * (torch.log(q) - torch.log(p))
            count += 1
    return total, count


# held out


def held_out(settings: dict, own: Own, samples: list[Sample], student: Any, teacher: Any) -> dict[str, float]:
    """Over every column of the chain of thought, paired with itself; means over the compared layers, keys and values."""
    plain = {"rkv": settings["rkv"] | {"method": "full", "shuffle": "none"}}
    plain["explicit"] = settings["explicit"] | {"attention_weighted": False}
    settings = settings | plain
    mine, theirs = ([read(lm, one) for one in samples] for lm in (student, teacher))
    compared = Comparison(settings, own, samples, mine, theirs, late=False).pairs(Chooser(settings, 0))
    found = alike(compared, [len(one.cot) for one in samples])
    varied = []
    for (part, place, _), row in compared.items():
        if (part, place) in own.reference and len(row) > 1:
            stds = torch.stack([pair.target for pair in row]).std(0)
            varied.append(float((stds / own.reference[part, place]).mean()))
    found |= {"target_variation": math.fsum(varied) / len(varied)} if varied else {}
    return ce_and_ppl(samples, mine) | found


def ce_and_ppl(samples: list[Sample], mine: list[Read]) -> dict[str, float]:
    texts = sum(len(one.cot) + len(one.cue) + len(one.answer) + 1 for one in samples)
    ce = float(sum(one.ce for one in mine)) / texts
    return {"ce": ce, "ppl": math.exp(ce)}


def alike(compared: Compared, lengths: list[int]) -> dict[str, float]:
    """Of `lengths` columns per sample, each paired with itself: how near student and target are, raw and centred."""
    found: dict[str, list[float]] = {}
    names = {"difference": "kv", "mean_predictor": "kv_mean_predictor", "unexplained": "kv_unexplained"}
    names["unexplained_by_dim"] = "kv_unexplained_by_dim"
    for part, place in dict.fromkeys(key[:2] for key in compared):
        rows = [compared[part, place, b] for b in range(len(lengths))]
        heads = max(len(row) // max(length, 1) for row, length in zip(rows, lengths, strict=True))
        sides = [[_by_head(row, side, heads) for row in rows] for side in ("student", "target")]
        kept = [[[True] * len(head) for head in heads_of] for heads_of in sides[0]]
        for name, value in direction.held_out(*sides, kept).items():
            found.setdefault(names.get(name, name), []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _by_head(rows: list[Pair], side: str, heads: int) -> list[list[list[float]]]:
    """[h][n][d] of one sample's pairs, which stand head by head where there is more than one."""
    each = len(rows) // heads
    return [[getattr(pair, side).tolist() for pair in rows[h * each : (h + 1) * each]] for h in range(heads)]

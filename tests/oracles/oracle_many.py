"""A mixture's micro-batch once more, slowly: loops over samples, tokens, layers and heads, on plain transformers models.

Every teacher reads one unpadded sample at a time; its keys come from the cache as they are, rotated at its own
positions. A vector is a 1-D tensor, so that autograd gives the gradients too. What follows the fused target is
oracle_tokens.py, on texts from which the tokens without a target are taken out. Nothing of ours is used; `settings` is
the recipe as plain dicts, `own` the weights beside the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import oracle_tokens as slow
import torch
from torch import Tensor

Turn = tuple[Tensor, Tensor]  # cosines and sines of one position's pairs


@dataclass
class Adapter:
    """y_h = gain_h * sum_t mixed[h, t] W x_t + shift_h; plain[h, t] mixes what the answer looks at."""

    weight: Tensor
    mixed: Tensor
    plain: list[list[float]]
    gain: Tensor
    shift: Tensor


@dataclass
class Own:
    """adapters[teacher][part][student layer]; reference[part][layer]; encoders (norm, bias, matrix, bias) of codes."""

    adapters: list[dict[str, list[Adapter]]]
    reference: list[list[list[float]]]
    router: dict[str, Tensor] = field(default_factory=dict)
    prototypes: Tensor | None = None
    encoders: list[tuple[Tensor, ...]] = field(default_factory=list)
    others: list[list[tuple[Tensor, ...]]] = field(default_factory=list)
    tokens: slow.Own = field(default_factory=slow.Own)


@dataclass
class Aligned:
    """One teacher at one sample's student tokens: keys[l][h][n] (not rotated), values, looked[l][h][n]; None: no match.

    codes[l][n] instead of keys and values where codes are compared.
    """

    keys: list
    values: list
    looked: list | None
    codes: list | None
    there: list[bool]


# reading


def unpadded(lm: Any, sample: slow.Sample, importance: bool) -> slow.Read:
    if importance:
        return slow.read(lm, sample)
    ids = [*sample.question, *sample.cot, *sample.cue, *sample.answer, sample.eos]
    cot = slice(len(sample.question), len(sample.question) + len(sample.cot))
    caches = lm(torch.tensor([ids]), use_cache=True).past_key_values.layers
    parts = [[[list(head) for head in getattr(c, part)[0, :, cot]] for c in caches] for part in ("keys", "values")]
    return slow.Read(torch.zeros(()), *parts, [], [])


def asked(lm: Any, sample: slow.Sample) -> list[Tensor]:
    """Per layer the mean over the question of the values of all heads, one behind the other."""
    caches = lm(torch.tensor([sample.question]), use_cache=True).past_key_values.layers
    return [torch.cat([sum(head) / len(head) for head in cache.values[0]]) for cache in caches]


def turns(lm: Any, start: int, count: int) -> list[Turn | None]:
    """The model's own cosines and sines at positions start, start + 1, ...; None where it has none."""
    decoder = lm.base_model
    if not hasattr(decoder, "rotary_emb"):
        return [None] * count
    cos, sin = decoder.rotary_emb(lm.get_input_embeddings().weight, torch.arange(start, start + count)[None])
    half = cos.shape[-1] // 2
    return [(cos[0, n, :half], sin[0, n, :half]) for n in range(count)]


def rotated(vector: Tensor, turn: Turn | None) -> Tensor:
    if turn is None:
        return vector
    cos, sin = turn
    half = len(cos)
    a, b, rest = vector[:half], vector[half : 2 * half], vector[2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest])


def unrotated(vector: Tensor, turn: Turn | None) -> Tensor:
    if turn is None:
        return vector
    cos, sin = turn
    half = len(cos)
    a, b, rest = vector[:half], vector[half : 2 * half], vector[2 * half :]
    size = cos**2 + sin**2
    return torch.cat([(a * cos + b * sin) / size, (b * cos - a * sin) / size, rest])


# one teacher


def overlap(num_to: int, num_from: int) -> list[list[float]]:
    """Row i: how much of [i F/T, (i+1) F/T) lies in each of the F unit intervals, in shares."""
    rows = []
    for i in range(num_to):
        low, high = Fraction(i * num_from, num_to), Fraction((i + 1) * num_from, num_to)
        shared = [max(Fraction(0), min(high, Fraction(j + 1)) - max(low, Fraction(j))) for j in range(num_from)]
        rows.append([float(x / (high - low)) for x in shared])
    return rows


def adapted(heads: list[Tensor], adapter: Adapter) -> list[Tensor]:
    """The teacher's heads [D_t] of one token -> the student's [D_s]."""
    sized = [adapter.weight @ vector for vector in heads]
    found = []
    for h, (gain, shift) in enumerate(zip(adapter.gain, adapter.shift, strict=True)):
        found.append(gain * sum(adapter.mixed[h, t] * vector for t, vector in enumerate(sized)) + shift)
    return found


def encoded(key: list[Tensor], value: list[Tensor], encoder: tuple[Tensor, ...]) -> Tensor:
    """Heads' keys, then heads' values, as one vector: LayerNorm, Linear."""
    scale, offset, matrix, bias = encoder
    return matrix @ (normed(torch.cat([*key, *value])) * scale + offset) + bias


def normed(vector: Tensor) -> Tensor:
    middle = vector - vector.sum() / len(vector)
    return middle / torch.sqrt((middle**2).sum() / len(vector) + 1e-5)


def aligned(
    lm: Any, sample: slow.Sample, iou: list[list[float]], settings: dict, own: Own, number: int, importance: bool
) -> Aligned:
    """unrotate -> tokens -> layers -> head size -> heads -> gain and shift."""
    adapters, students = own.adapters[number], len(own.adapters[number]["K"])
    with torch.no_grad():
        read = unpadded(lm, sample, importance)
        places = turns(lm, len(sample.question), len(sample.cot))
        keys = [[[unrotated(v, p) for v, p in zip(head, places, strict=True)] for head in k] for k in read.keys]
    there = [any(share > 0 for share in row) for row in iou]
    shares = slow.layer_map(students, len(keys), settings["mixture"]["layer_map"])
    found = Aligned([], [], [] if importance else None, [] if settings["mixture"]["space"] == "z" else None, there)
    for layer, share in enumerate(shares):
        plain = [_at_tokens(slow.mixed(part, share), iou, there) for part in (keys, read.values)]  # [n][h]
        if found.codes is not None:
            encoder = own.others[number][layer]
            found.codes.append([None if k is None else encoded(k, v, encoder) for k, v in zip(*plain, strict=True)])
        else:
            for into, part, entries in zip((found.keys, found.values), "KV", plain, strict=True):
                made = [None if e is None else adapted(e, adapters[part][layer]) for e in entries]
                heads = range(len(adapters[part][layer].gain))
                into.append([[None if e is None else e[h] for e in made] for h in heads])
        if found.looked is not None:
            mass = [_spread(head, iou) for head in _added(read.looked, share)]
            rows = adapters["K"][layer].plain
            found.looked.append(
                [[sum(w * m[n] for w, m in zip(row, mass, strict=True)) for n in range(len(iou))] for row in rows]
            )
    return found


def _at_tokens(heads: list, iou: list[list[float]], there: list[bool]) -> list:
    """heads[h][teacher token] -> [student token][h], by the row's shares."""
    found = []
    for row, some in zip(iou, there, strict=True):
        total = math.fsum(row)
        found.append([sum(x / total * v for x, v in zip(row, h, strict=True)) for h in heads] if some else None)
    return found


def _added(looked: list, share: dict[int, float]) -> list[list[float]]:
    heads = range(len(looked[0]))
    return [[math.fsum(w * float(looked[t][h][n]) for t, w in share.items()) for n in range(len(looked[0][h]))]
            for h in heads]  # fmt: skip


def _spread(mass: list[float], iou: list[list[float]]) -> list[float]:
    """What each teacher token has, shared out over the student tokens that it matches."""
    totals = [math.fsum(row[j] for row in iou) for j in range(len(mass))]
    return [math.fsum(row[j] / totals[j] * mass[j] for j in range(len(mass)) if totals[j] > 0) for row in iou]


# the weights of teachers


def weights_of(
    settings: dict, own: Own, sample: slow.Sample, lm: Any, count: int, layers: int, epoch: int
) -> list[list[Tensor]]:
    """[layer][token] -> weights [S] of one sample; one column at least, unless they differ by token."""
    mixture = settings["mixture"]
    columns = range(len(sample.cot) if mixture["per_token"] else max(len(sample.cot), 1))
    start, step, floor = (mixture[name] for name in ("temperature", "temperature_step", "temperature_floor"))
    heat = min(start, max(floor, start - step * epoch))
    if mixture["fusion"] == "fixed":
        one = torch.tensor(mixture["weights"] or [1 / count] * count, dtype=torch.float64)
        return [[one for _ in columns] for _ in range(layers)]
    if mixture["fusion"] == "similarity":
        assert own.prototypes is not None
        with torch.no_grad():
            scores = [_similar(v, own.prototypes[:, i], mixture["similarity"]) for i, v in enumerate(asked(lm, sample))]
        if not mixture["per_layer"]:
            scores = [sum(scores) / len(scores)] * layers
        return [[_softmax(score / heat) for _ in columns] for score in scores]
    states = _states(lm, sample, mixture["query"])
    first = len(sample.question)
    whole = sum(states[:first]) / first
    found = []
    for n in columns if mixture["per_token"] else [0]:
        seen = states[first + n] if mixture["per_token"] else whole
        scores = _routed(normed(seen), own.router, mixture["router"])
        rows = scores.reshape(-1, count)  # one row per layer, or one for all
        found.append([_softmax(rows[layer if len(rows) > 1 else 0] / heat) for layer in range(layers)])
    return [[found[n if mixture["per_token"] else 0][layer] for n in columns] for layer in range(layers)]


def _states(lm: Any, sample: slow.Sample, query: str) -> list[Tensor]:
    ids = torch.tensor([[*sample.question, *sample.cot]])
    with torch.no_grad():
        if query == "embedding":
            return list(lm.get_input_embeddings()(ids)[0])
        return list(lm(ids, output_hidden_states=True).hidden_states[-1][0])


def _routed(seen: Tensor, router: dict[str, Tensor], kind: str) -> Tensor:
    if kind == "attention":
        query = router["query.weight"] @ seen + router["query.bias"]
        rows = [torch.dot(query, router["key.weight"] @ e) / math.sqrt(len(e)) for e in router["teachers"]]
        return torch.stack(rows)
    numbers = sorted({int(name.split(".")[1]) for name in router})
    for place in numbers:
        seen = router[f"net.{place}.weight"] @ seen + router[f"net.{place}.bias"]
        if place != numbers[-1]:
            seen = torch.where(seen > 0, seen, torch.zeros_like(seen))
    return seen


def _similar(vector: Tensor, prototypes: Tensor, metric: str) -> Tensor:
    """[S] to the nearest of each teacher's centres [S, C, d]."""
    found = []
    for centres in prototypes:
        each = []
        for centre in centres:
            inner = torch.dot(vector, centre)
            if metric == "cosine":
                inner = inner / torch.sqrt(torch.dot(vector, vector) * torch.dot(centre, centre))
            elif metric == "l2":
                inner = -torch.sqrt(((vector - centre) ** 2).sum())
            each.append(inner)
        found.append(max(each))
    return torch.stack(found)


def _softmax(scores: Tensor) -> Tensor:
    raised = [torch.exp(s - max(scores).detach()) for s in scores]
    return torch.stack([r / sum(raised) for r in raised])


# one target of several


@dataclass
class Target:
    """Samples, student and target without the tokens that have no target, and how that came about."""

    samples: list[slow.Sample]
    mine: list[slow.Read]
    theirs: list[slow.Read]
    weights: list[list[list[Tensor]]]
    columns: list[list[int]]
    each: list[list[Aligned]]


def target_of(
    settings: dict, own: Own, samples: list, heard: list[list], ious: list[list], student: Any, teachers: list, epoch: int,
    importance: bool, mine: list[slow.Read],
) -> Target:  # fmt: skip
    layers, count = len(mine[0].keys), len(teachers)
    given = settings["mixture"]["weights"] if settings["mixture"]["fusion"] == "fixed" else None
    counted = [weight > 0 for weight in given or [1.0] * count]
    weights = [weights_of(settings, own, s, student, count, layers, epoch) for s in samples]
    each = [
        [aligned(lm, heard[i][b], ious[i][b], settings, own, i, importance) for i, lm in enumerate(teachers)]
        for b in range(len(samples))
    ]
    less, left, right, columns = [], [], [], []
    for b, sample in enumerate(samples):
        kept = [
            n for n in range(len(sample.cot)) if any(a.there[n] and c for a, c in zip(each[b], counted, strict=True))
        ]
        places = turns(student, len(sample.question), len(sample.cot))
        less.append(replace(sample, cot=[sample.cot[n] for n in kept], result=[sample.result[n] for n in kept]))
        columns.append(kept)
        left.append(_student_side(settings, own, mine[b], places, kept))
        right.append(_fused(each[b], weights[b], places, kept, layers))
    return Target(less, left, right, weights, columns, each)


def _student_side(settings: dict, own: Own, read: slow.Read, places: list, kept: list[int]) -> slow.Read:
    looked = [[head[kept] for head in layer] for layer in read.looked]
    if settings["mixture"]["space"] == "z":
        codes = []
        for layer, encoder in enumerate(own.encoders):
            key = [[unrotated(head[n], places[n]) for head in read.keys[layer]] for n in kept]
            value = [[head[n] for head in read.values[layer]] for n in kept]
            codes.append([[encoded(k, v, encoder) for k, v in zip(key, value, strict=True)]])
        return slow.Read(read.ce, codes, codes, looked, [])
    keys, values = ([[[h[n] for n in kept] for h in layer] for layer in part] for part in (read.keys, read.values))
    return slow.Read(read.ce, keys, values, looked, [])


def _fused(each: list[Aligned], weights: list, places: list, kept: list[int], layers: int) -> slow.Read:
    """Layer, head and token: the weighted mean over the teachers that are there."""
    found = slow.Read(torch.zeros(()), [], [], [], [])
    codes = each[0].codes is not None

    def mean(pick: Any, layer: int, n: int) -> Any:
        there = [(weights[layer][n][i], pick(one)) for i, one in enumerate(each) if one.there[n]]
        total = sum(weight for weight, _ in there)
        return sum(weight / total * vector for weight, vector in there)

    for layer in range(layers):
        if codes:
            rows = [[mean(lambda a, i=layer, n=n: a.codes[i][n], layer, n) for n in kept]]
            found.keys.append(rows)
            found.values.append(rows)
        else:
            heads = range(len(each[0].keys[layer]))
            found.keys.append(
                [[rotated(mean(lambda a, i=layer, h=h, n=n: a.keys[i][h][n], layer, n), places[n]) for n in kept]
                 for h in heads]
            )  # fmt: skip
            found.values.append(
                [[mean(lambda a, i=layer, h=h, n=n: a.values[i][h][n], layer, n) for n in kept] for h in heads]
            )
        if each[0].looked is not None:
            heads = range(len(each[0].looked[layer]))
            found.looked.append(
                [torch.stack([mean(lambda a, i=layer, h=h, n=n: a.looked[i][h][n], layer, n).detach() for n in kept])
                 if kept else torch.zeros(0, dtype=torch.float64) for h in heads]
            )  # fmt: skip
        else:
            heads = range(1 if codes else len(each[0].keys[layer]))
            found.looked.append([torch.zeros(len(kept), dtype=torch.float64) for _ in heads])
    return found


# the loss


def loss(
    settings: dict, own: Own, samples: list, heard: list[list], ious: list[list], student: Any, teachers: list,
    epoch: int = 0, late: bool = True, progress: float = 1.0,
) -> tuple[Tensor, slow.Terms]:  # fmt: skip
    """The weighted loss, and each term. heard[i][b]: sample b as teacher i reads it; ious[i][b]: [N_s][N_t]."""
    weights, explicit, mixture = settings["loss"], settings["explicit"], settings["mixture"]
    mine = [slow.read(student, one) for one in samples]
    structural = weights["kv_loss_type"] == "structural"
    attends = structural or explicit["gamma_kl"] > 0
    scored = settings["rkv"]["method"] in ("rkv", "rkv_original") and settings["rkv"]["lambda"] > 0
    looked = attends or scored or explicit["attention_weighted"]
    made = target_of(settings, own, samples, heard, ious, student, teachers, epoch, looked, mine)
    texts = sum(len(one.cot) + len(one.cue) + len(one.answer) + 1 for one in samples)
    rises = ramp_value(progress, explicit["ce_ramp"])
    terms: slow.Terms = {"ce_student": (sum(one.ce for one in mine), texts, weights["student_ce"] * rises)}
    compared = slow.Comparison(settings, own.tokens, made.samples, made.mine, made.theirs, late)
    if explicit["cka_weight"] > 0:
        terms["cka"] = (*slow._cka(explicit["cka_layers"], compared), explicit["cka_weight"])
    if mixture["space"] == "z":
        terms["kv"] = (*_coded(settings, compared, progress, epoch), weights["alpha2_kv"])
    else:
        pairs = compared.pairs(slow.Chooser(settings, epoch))
        terms["kv"] = (*_kv(settings, pairs, compared, progress), weights["alpha2_kv"])
        if explicit["beta_cos"] > 0:
            terms["kv_cosine"] = (
                *_kv(settings, pairs, compared, progress, "cosine"),
                explicit["beta_cos"] * weights["alpha2_kv"],
            )
    if attends:
        ramp = ramp_value(progress, explicit["gamma_ramp"])
        weight = 0.5 * weights["alpha2_kv"] * structural + explicit["gamma_kl"] * ramp
        terms["attention"] = (*attention(compared), weight)
    if mixture["space"] == "z" or (settings["projector"]["trainable"] and settings["projector"]["guard"] != "none"):
        weight = mixture["z_variance"] if mixture["space"] == "z" else settings["projector"]["guard_weight"]
        terms["guard"] = (*_guard(settings, own, made, compared), weight)
    if mixture["entropy"] != "none":
        terms["entropy"] = (*_entropy(mixture, made), mixture["entropy_weight"])
    whole = sum(weight * total / count if count else 0.0 * total for total, count, weight in terms.values())
    return whole, terms


def ramp_value(progress: float, ramp: list[float]) -> float:
    start, end = ramp
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0


def layer_shares(settings: dict, compared: slow.Comparison, progress: float) -> list[float]:
    """The first third of the student's layers counts from the start, the rest after the warm-up."""
    if settings["explicit"]["form"] == "aggregated":
        return [1.0]
    warmup = settings["mixture"]["layer_warmup"]
    late = ramp_value(progress, [warmup, min(1.0, 2 * warmup)]) if warmup > 0 else 1.0
    third = math.ceil(len(compared.map) / 3)
    return [1.0 if layer < third else late for layer in compared.layers]


def _kv(
    settings: dict, pairs: slow.Compared, compared: slow.Comparison, progress: float, other: str | None = None
) -> tuple[Tensor, float]:
    """1/2 (lambda_k sum_K + lambda_v sum_V), and how many numbers (or entries) each of the two goes over."""
    loss, explicit = settings["loss"], settings["explicit"]
    kind = other or loss["kv_loss_type"]
    trained = settings["projector"]["trainable"] or settings["mixture"]["fusion"] == "learnable"
    parts, shares = compared.parts, layer_shares(settings, compared, progress)
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for (part, place, b), rows in pairs.items():
        batch = loss["std_scope"] == "batch"
        pool = [pair.target for key, more in pairs.items() if key[:2] == (part, place) for pair in more
                if batch or key[2] == b]  # fmt: skip
        std = slow.deviation(pool) if loss["layerwise_std"] else 1.0
        weight = shares[place] * explicit[f"lambda_{part}"] / len(parts)
        for pair in rows:
            target = pair.target if trained else pair.target.detach()
            if kind in ("smooth_l1", "mse", "l1"):
                total = total + weight * pair.weight * slow.elementwise(pair.student, target, kind, std)
                count += shares[place] * len(target) / len(parts)
            else:
                direction = "cosine" if kind == "structural" else kind
                total = total + weight * pair.weight * slow.directed(pair.student, target, direction)
                count += shares[place] / len(parts)
    return total, count


def _coded(settings: dict, compared: slow.Comparison, progress: float, epoch: int) -> tuple[Tensor, float]:
    """Distances of codes, one mean per sample and layer."""
    chooser, kind = slow.Chooser(settings, epoch), settings["mixture"]["z_loss"]
    shares = layer_shares(settings, compared, progress)
    chosen = []
    for sample, read in zip(compared.samples, compared.theirs, strict=True):
        same = [keys * len(looked) for keys, looked in zip(read.keys, read.looked, strict=True)]
        chosen.append(chooser.whole(sample, replace(read, keys=same)))
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for b, (left, right, source) in enumerate(chooser.paired(chosen, compared.samples)):
        if len(left) < (2 if kind == "barlow" else 1):
            continue
        for share, layer in zip(shares, compared.layers, strict=True):
            mine = [compared.mine[b].keys[layer][0][n] for n in left]
            theirs = [compared.theirs[source].keys[layer][0][n] for n in right]
            total = total + share * code_distance(mine, theirs, kind)
            count += share
    return total, count


def code_distance(mine: list[Tensor], theirs: list[Tensor], kind: str) -> Tensor:
    if kind == "mse":
        return sum(((s - t) ** 2).sum() / len(s) for s, t in zip(mine, theirs, strict=True)) / len(mine)
    if kind == "cosine":
        return sum(slow.directed(s, t, "cosine") for s, t in zip(mine, theirs, strict=True)) / len(mine)
    columns = [[torch.stack([v[i] for v in side]) for i in range(len(mine[0]))] for side in (mine, theirs)]
    left, right = ([_standard(column) for column in side] for side in columns)
    total = torch.zeros((), dtype=torch.float64)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            c = torch.dot(x, y) / len(x)
            total = total + ((1 - c) ** 2 if i == j else 0.005 * c**2)
    return total / len(left)


def _standard(column: Tensor) -> Tensor:
    middle = column - column.sum() / len(column)
    return middle / torch.sqrt((middle**2).sum() / len(column) + 1e-5)


def attention(compared: slow.Comparison) -> tuple[Tensor, float]:
    """KL(target || student) of what the answer looks at among the tokens that have a target, heads averaged."""
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for mine, theirs, sample in zip(compared.mine, compared.theirs, compared.samples, strict=True):
        if not sample.cot:
            continue
        for layer in range(len(compared.map)):
            p, q = (
                sum(head / head.sum() for head in heads) / len(heads)
                for heads in (mine.looked[layer], theirs.looked[layer])
            )
            for x, y in zip(p, q, strict=True):
                if y > 0:
                    total = total + y * (torch.log(y) - torch.log(x))
            count += 1
    return total, count


def _entries(one: Aligned, part: str, layer: int) -> list[Tensor]:
    """One vector per token that the teacher has matched, before the student's rotation."""
    if part == "z":
        return [code for code in one.codes[layer] if code is not None]
    heads = one.keys[layer] if part == "k" else one.values[layer]
    return [torch.cat([head[n] for head in heads]) for n, here in enumerate(one.there) if here]


def _guarded(settings: dict, own: Own, compared: slow.Comparison) -> list[tuple[str, int, list[float]]]:
    """Part, layer and reference of all that is compared."""
    parts = "z" if settings["mixture"]["space"] == "z" else "kv"
    whole, last = settings["explicit"]["form"] == "aggregated", len(compared.map) - 1
    layers = [last] if whole and not settings["explicit"]["use_all_layers"] else compared.layers
    return [
        (part, layer, reference[layer])
        for part, reference in zip(parts, own.reference, strict=True)
        for layer in layers
        if part == "z" or part in compared.parts
    ]


def _guard(settings: dict, own: Own, made: Target, compared: slow.Comparison) -> tuple[Tensor, float]:
    """relu(1 - std / reference) of each teacher alone; with guard band also relu(std / (2 reference) - 1)."""
    band = settings["projector"]["guard"] == "band" and settings["mixture"]["space"] != "z"
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for one in [one for each in made.each for one in each]:
        for part, layer, reference in _guarded(settings, own, compared):
            rows = _entries(one, part, layer)
            if len(rows) < 2:
                continue
            count += 1
            for d, wanted in enumerate(reference):
                column = torch.stack([row[d] for row in rows])
                std = torch.sqrt(((column - column.mean()) ** 2).sum() / (len(rows) - 1))
                above = torch.relu(std / (2 * wanted) - 1) if band else 0.0
                total = total + (torch.relu(1 - std / wanted) + above) / len(reference)
    return total, count


def _entropy(mixture: dict, made: Target) -> tuple[Tensor, float]:
    """Mean over layers and (where weights differ by token) tokens with a target; a sample without such tokens gives 0."""
    total = torch.zeros((), dtype=torch.float64)
    for weights, kept in zip(made.weights, made.columns, strict=True):
        each = []
        for rows in weights:
            for n in kept if mixture["per_token"] else [0] if rows else []:
                entropy = -sum(w * torch.log(w) for w in rows[n])
                each.append(math.log(len(rows[n])) - entropy if mixture["entropy"] == "diverse" else entropy)
        total = total + sum(each) / len(each) if each else total
    return total, float(len(made.weights))


# held out


def held_out(
    settings: dict, own: Own, samples: list, heard: list[list], ious: list[list], student: Any, teachers: list,
    names: list[str],
) -> dict[str, float]:  # fmt: skip
    """Every token that has a target, paired with itself: the fused target, and each teacher alone."""
    plain = {"rkv": settings["rkv"] | {"method": "full", "shuffle": "none"}}
    plain["explicit"] = settings["explicit"] | {"attention_weighted": False}
    settings = settings | plain
    mine = [slow.read(student, one) for one in samples]
    made = target_of(settings, own, samples, heard, ious, student, teachers, 0, False, mine)
    found = slow.ce_and_ppl(samples, mine) | slow.alike(*_all(settings, own, made))
    for i, name in enumerate(names):
        one = settings | {"mixture": settings["mixture"] | {"fusion": "fixed", "weights": [1.0]}}
        alone = target_of(one, replace(own, adapters=[own.adapters[i]], others=own.others[i : i + 1]), samples, [heard[i]],
                          [ious[i]], student, [teachers[i]], 0, False, mine)  # fmt: skip
        pairs, _ = _all(settings, own, alone)
        gaps = [((p.student - p.target) ** 2) for rows in pairs.values() for p in rows]
        found[f"kv_{name}"] = float(sum(gap.sum() for gap in gaps)) / sum(len(gap) for gap in gaps)
    compared = slow.Comparison(settings, own.tokens, made.samples, made.mine, made.theirs, late=False)
    varied = []
    for one in [one for each in made.each for one in each]:
        for part, layer, reference in _guarded(settings, own, compared):
            rows = _entries(one, part, layer)
            if len(rows) > 1 and part != "k":
                varied.append(float((torch.stack(rows).std(0) / torch.tensor(reference, dtype=rows[0].dtype)).mean()))
    return found | ({"target_variation": math.fsum(varied) / len(varied)} if varied else {})


def _all(settings: dict, own: Own, made: Target) -> tuple[slow.Compared, list[int]]:
    compared = slow.Comparison(settings, own.tokens, made.samples, made.mine, made.theirs, late=False)
    lengths = [len(one.cot) for one in made.samples]
    if settings["mixture"]["space"] != "z":
        return compared.pairs(slow.Chooser(settings, 0)), lengths
    pairs = {}
    for layer in compared.layers:
        for b, (mine, theirs) in enumerate(zip(made.mine, made.theirs, strict=True)):
            both = zip(mine.keys[layer][0], theirs.keys[layer][0], strict=True)
            pairs["z", layer, b] = [slow.Pair(s, t, 1.0) for s, t in both]
    return pairs, lengths

"""The components of `kava smoke multi-teacher`: each module for several teachers called once, then a tiny run of each phase.

What a module must do in full is tested elsewhere; here one call and one check show that it works on this machine.
"""

import json
from collections.abc import Callable
from functools import partial
from math import log

import torch
from torch import Tensor

from kava.align import Aligner, HeadDimAdapter, layer_map
from kava.align.layers import STRATEGIES
from kava.align.length import align_sequence_lengths
from kava.align.rope import METHODS as SCALINGS
from kava.align.rope import rotate, scaled, unrotate
from kava.align.tokens import build_char_align_matrix, coverage
from kava.fuse import (
    Collapse,
    LearnableRouter,
    compute_teacher_prototype,
    fuse_kvs_fixed,
    fuse_kvs_learnable,
    fuse_kvs_similarity,
)
from kava.fuse.prototypes import METHODS as PROTOTYPES
from kava.fuse.routers import ROUTERS
from kava.lab.selfcheck.components import FEW_EXAMPLES, distill, log_lines, routing_weights, weight_gap
from kava.lab.selfcheck.context import Component, SelfCheckContext, by_name, closeness, expect
from kava.lab.selfcheck.foreign_teachers import KINDS, teacher_folder, tokenizer_of
from kava.losses.entropy import TARGETS, entropy_of, entropy_term
from kava.losses.zspace import LEAST, z_loss
from kava.teachers.base import KVShape

CHAIN = "3+4=7 7*2=14 14-1=13"
B, H, N, D, S = 3, 2, 6, 8, 3  # samples, heads, tokens, head size, teachers
CLOSE = 1e-5
STEPS = 8
Fuse = Callable[[list[Tensor], Tensor], Tensor]  # teachers' entries [B, H, N, D] and queries [B, D] -> [B, H, N, D]


def check_tokens(context: SelfCheckContext) -> str:
    tokenizers = {kind: tokenizer_of(context, kind) for kind in KINDS}
    for student in KINDS:
        for teacher in KINDS:
            share = coverage(build_char_align_matrix(CHAIN, tokenizers[teacher], tokenizers[student]))
            expect(share > 0.6, f"{teacher} matches {100 * share:.0f} % of a chain's {student} tokens only")
    return f"{', '.join(KINDS)} with each other: most tokens of a chain are matched"


def check_time(context: SelfCheckContext) -> str:
    teacher, student = draw(context, B, H, N, D), draw(context, B, H, N + 3, D)
    padded, _, mask, _ = align_sequence_lengths(teacher, student)
    same(padded[:, :, :N], teacher, "padded keys")
    expect(padded.shape == student.shape and mask.sum(1).tolist() == [N] * B, "the mask does not tell the real tokens")
    return f"{N} tokens padded to {N + 3} and masked"


def check_layers(_: SelfCheckContext) -> str:
    for strategy in STRATEGIES:
        sums = [sum(weight for _, weight in entry) for entry in layer_map(5, 12, strategy)]
        expect(all(abs(total - 1) < CLOSE for total in sums), f"{strategy}: weights sum to {sums}")
    return f"12 layers to 5 by {', '.join(STRATEGIES)}: weights sum to 1"


def check_heads(context: SelfCheckContext) -> str:
    keys = draw(context, B, H, N, D)
    same(HeadDimAdapter(D, D, H, H).to(context.device)(keys), keys, "an adapter between equal sizes")
    shape = HeadDimAdapter(D, 4, H, 3).to(context.device)(keys).shape
    expect(shape == (B, 3, N, 4), f"{H} heads of {D} to 3 of 4 give {tuple(shape)}")
    return f"{H} heads of {D} to 3 of 4; equal sizes: the identity"


def check_rope(context: SelfCheckContext) -> str:
    keys = draw(context, B, H, N, D)
    for method in SCALINGS:
        cos, sin = scaled(10000.0, D, method, 512, 2048).angles(_token_positions(context))
        same(unrotate(rotate(keys, cos, sin), cos, sin), keys, f"{method}: keys rotated and turned back")
    return f"rotated and turned back with {', '.join(SCALINGS)}"


def check_pipeline(context: SelfCheckContext) -> str:
    shape = KVShape(2, H, D, H * D)
    layers = [draw(context, B, H, N, D, seed=seed) for seed in range(2)]
    cos, sin = scaled(10000.0, D).angles(_token_positions(context))
    aligner = Aligner(shape, shape, layer_map(2, 2)).to(context.device)
    identity = torch.eye(N, device=context.device).expand(B, -1, -1)
    keys, values = aligner([unrotate(layer, cos, sin) for layer in layers], layers, identity)
    for layer, key, value in zip(layers, keys, values, strict=True):
        same(rotate(key, cos, sin), layer, "keys of a teacher like the student")
        same(value, layer, "values of a teacher like the student")
    return "un-rotate, tokens, layers, size, heads, rotate: a teacher like the student stays itself"


def _check_fusion(fuse: Fuse, context: SelfCheckContext) -> str:
    entries = draw(context, B, H, N, D)
    same(fuse([entries] * S, draw(context, B, D, seed=1)), entries, "one teacher given three times")
    return "one teacher given three times fuses to itself"


FUSIONS: dict[str, Fuse] = {
    "fuse_fixed": lambda parts, _: fuse_kvs_fixed(parts, [0.2, 0.3, 0.5]),
    "fuse_similarity": lambda parts, query: fuse_kvs_similarity(parts, query, query)[0],
    "fuse_learnable": lambda parts, query: fuse_kvs_learnable(parts, query, LearnableRouter(D, S).to(query.device))[0],
}


def _check_router(kind: str, context: SelfCheckContext) -> str:
    parts = [draw(context, B, H, N, D, seed=seed) for seed in range(S)]
    router = LearnableRouter(D, S, kind).to(context.device)
    fused, weights = fuse_kvs_learnable(parts, draw(context, B, D), router)
    same(weights.sum(-1), torch.ones(B), "sums of the weights")
    (fused * parts[0]).sum().backward()
    gradients = [weight.grad for weight in router.parameters() if weight.grad is not None]
    expect(any(bool(gradient.any()) for gradient in gradients), "no gradient reaches the router through what it fuses")
    return "weights sum to 1; what is fused trains it"


def check_entropy(context: SelfCheckContext) -> str:
    even = torch.full((1, 1, 1, S), 1 / S, device=context.device)
    same(entropy_of(even), torch.full((1, 1, 1), log(S)), "entropy of equal weights")
    terms = [float(entropy_term(even, target)) for target in TARGETS]
    expect(abs(terms[0]) < CLOSE < terms[1], f"{TARGETS} of equal weights are {terms}")
    return f"{', '.join(TARGETS)}: equal weights have ln {S}, which only the second pushes down"


def check_collapse(context: SelfCheckContext) -> str:
    for weight, alarm in ((0.6, False), (0.97, True)):
        meter = Collapse(0.95)
        meter.add(torch.tensor([[[[weight, 1 - weight]]]], device=context.device))
        window = meter.close()
        expect(window is not None and (window.collapsed == 0) == alarm, f"wrong at a mean weight of {weight}")
    return "silent at a mean weight of 0.6, detected at 0.97"


def _check_prototype(method: str, context: SelfCheckContext) -> str:
    centre = draw(context, D)
    texts = centre.repeat(4, N, 1)
    texts[:, -1] = 1e6  # padding, which must not count
    mask = torch.ones(4, N, device=context.device)
    mask[:, -1] = 0
    same(compute_teacher_prototype(texts, method, mask, num_clusters=1), centre, f"{method} of one repeated vector")
    return "of one repeated vector is that vector; padding does not count"


def check_codes(context: SelfCheckContext) -> str:
    kept = torch.ones(B, 20, dtype=torch.bool, device=context.device)
    code, other = draw(context, B, 20, 4), draw(context, B, 20, 4, seed=1)
    for kind in LEAST:
        equal, apart = float(z_loss(code, code, kept, kind)), float(z_loss(code, other, kept, kind))
        expect(equal < 0.05 * apart, f"{kind}: {equal:.3f} for the same codes, {apart:.3f} for others")
    return f"{', '.join(LEAST)}: least for equal codes"


def check_extraction(context: SelfCheckContext) -> str:
    """The same run with its teachers live and from stores of what each gives at its own tokens."""
    live = [{"name": kind, "model": str(teacher_folder(context, kind))} for kind in KINDS]
    stored = [entry | {"store": str(context.folder / f"store_{entry['name']}")} for entry in live]
    settings = [f"mixture.teachers={json.dumps(teachers)}" for teachers in (live, stored)]
    recipe = ["--config", "multi_teacher_embedded", *FEW_EXAMPLES, settings[0], context.device_setting]
    for entry in stored:
        words = ["--teacher", entry["name"], "--output_dir", entry["store"], "--with_importance", "--batch_size", 8]
        context.run_verb("extract", *recipe, *words)
    names = ("teachers_live", "teachers_stored")
    runs = [distill(context, name, 3, words, steps=2) for name, words in zip(names, settings, strict=True)]
    gap = weight_gap(*(run / "best_checkpoint" for run in runs))
    expect(gap <= 1e-4, f"teachers read from their stores train other weights, off by {gap:.1e}")
    return f"{len(KINDS)} teachers of other tokenizers, live and from stores: the same weights, {closeness(gap)}"


def _check_phase(number: int, context: SelfCheckContext) -> str:
    """A few updates: the held-out distance to the fused teacher must fall, and the student must load."""
    words = ["--teacher_models", "kava:embedded", *(str(teacher_folder(context, kind)) for kind in KINDS)]
    words = {1: ["--teacher_prompts", "default", "cot"], 2: words[:3]}.get(number, words)
    run = distill(context, f"phase{number}", number, *words, steps=STEPS)
    held_out = [line for line in log_lines(run / "log.jsonl") if "eval_kv" in line]
    expect(bool(held_out), "the distance to the fused teacher was not measured on held-out examples")
    start, end = held_out[-1]["eval_kv_start"], held_out[-1]["eval_kv"]
    expect(end < start, f"held-out distance to the fused teacher rises from {start:.4g} to {end:.4g}")
    shares = " ".join(f"{weight:.2f}" for weight in routing_weights(context, run).values())
    return f"held-out KV distance {start:.3g} to {end:.3g}; weights {shares}; the student loads"


def draw(context: SelfCheckContext, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(context.device)


def same(result: Tensor, wanted: Tensor, what: str) -> None:
    gap = float((result.detach().cpu() - wanted.detach().cpu()).abs().max())
    expect(gap < CLOSE, f"{what}: off by {gap:.1e}")


def _token_positions(context: SelfCheckContext) -> Tensor:
    return torch.arange(N, device=context.device).expand(B, -1)


COMPONENTS: dict[str, Component] = {
    **by_name(check_tokens, check_time, check_layers, check_heads, check_rope, check_pipeline),
    **{name: partial(_check_fusion, fuse) for name, fuse in FUSIONS.items()},
    **{f"router_{kind}": partial(_check_router, kind) for kind in ROUTERS},
    **by_name(check_entropy, check_collapse),
    **{f"proto_{method}": partial(_check_prototype, method) for method in PROTOTYPES},
    **by_name(check_codes, check_extraction),
    **{f"phase{number}": partial(_check_phase, number) for number in (1, 2, 3, 4, 5)},
}

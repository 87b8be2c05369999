"""KaVa's whole loss for one batch, written out by hand: no padding, no masks, one sample and one pass at a time.

    teacher   [Q, C, cue, A, eos]                      -> its cross-entropy, the KV of C, hidden states at the cue
    pass 0    [Q, <bot>, <latent> x M]                 -> e_1 .. e_M, and the KV of [Q, <bot>]
    t = 1..T  [e_1 .. e_M] on that prefix              -> better e_2 .. e_M; the last round's KV is what is distilled
    answer    [<eot>, cue, A, eos] on prefix + latents -> the student's cross-entropy, hidden states at the cue

    L = CE_student + CE_teacher + alpha1 CODI + alpha2 KV,  each a sum over the batch / what was counted there
Slow on purpose. A test holds every term and gradient to those of src/kava/objective/objective.py, to 1e-9.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, smooth_l1_loss
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


@dataclass
class Sample:
    question: list[int]
    cot: list[int]
    cue: list[int]  # "The answer is:"
    answer: list[int]  # the number alone
    eos: int


@dataclass
class Settings:
    special: tuple[int, int, int]  # <bot>, <latent>, <eot>
    num_latents: int = 24  # M
    rounds: int = 3  # T
    lambda_: float = 0.1
    alpha1: float = 10.0  # CODI
    alpha2: float = 1.0  # KV


def by_hand(lm, prj, batch, settings):
    """The four terms and their weighted sum "loss". lm: any Llama, Qwen2, Qwen3 or GPT-2; prj: hidden -> embedding."""
    total = dict.fromkeys(("ce_student", "ce_teacher", "codi", "kv"), 0.0)
    count = dict.fromkeys(total, 0)
    for sample in batch:
        tail = [*sample.cue, *sample.answer, sample.eos]
        teacher, student = run_teacher(lm, sample, tail), run_student(lm, prj, sample, tail, settings)
        found = [("ce_student", student["ce"], len(tail)), ("ce_teacher", teacher["ce"], len(sample.cot + tail))]
        found += [("codi", *codi_loss(*pair)) for pair in zip(student["cue"], teacher["cue"], strict=True)]
        found += [("kv", *kv_loss(lm, i, teacher, kv, settings)) for i, kv in enumerate(student["kv"])]
        for name, loss, compared in found:
            total[name] += loss
            count[name] += compared
    terms = {name: total[name] / count[name] if count[name] else torch.zeros(()) for name in total}
    loss = terms["ce_student"] + terms["ce_teacher"] + settings.alpha1 * terms["codi"] + settings.alpha2 * terms["kv"]
    return terms | {"loss": loss}


def run(lm, embeds, prefix=()):
    """One causal pass on top of the KV `prefix`: the decoder's output, and per layer the KV of prefix and pass."""
    cache = DynamicCache(list(prefix)) if prefix else DynamicCache()  # a pass grows its cache: a new one each time
    out = lm.base_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, output_hidden_states=True)
    return out, [(layer.keys, layer.values) for layer in cache.layers]


def cut(kv, start, stop):
    return [(keys[:, :, start:stop], values[:, :, start:stop]) for keys, values in kv]


def embed(lm, ids):
    return lm.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))


def ce(lm, hidden, targets):
    """Summed cross-entropy; target i is predicted by hidden state i, the one before it."""
    return cross_entropy(lm.get_output_embeddings()(hidden[0]), torch.tensor(targets), reduction="sum")


def run_teacher(lm, sample, tail):
    q, cue = len(sample.question), len(sample.question + sample.cot + sample.cue) - 1
    out, kv = run(lm, embed(lm, sample.question + sample.cot + tail))
    return {
        "ce": ce(lm, out.last_hidden_state[:, q - 1 : -1], sample.cot + tail),
        "cue": [hidden[0, cue] for hidden in out.hidden_states[1:]],  # behind layers 1..L, not the embeddings
        "before": out.hidden_states,  # what each layer reads
        "answer": list(range(cue + 1, cue + 1 + len(sample.answer))),
        "kv": cut(kv, q, q + len(sample.cot)),
    }


def run_student(lm, prj, sample, tail, settings):
    m, (bot, latent, eot) = settings.num_latents, settings.special
    start = len(sample.question) + 1
    out, kv = run(lm, embed(lm, [*sample.question, bot, *[latent] * m]))
    embeds = prj(out.last_hidden_state[:, start - 1 : -1])  # e_1 from <bot>, e_i from slot i-1
    for t in range(settings.rounds if m else 0):
        if t:
            embeds = torch.cat([embeds[:, :1], prj(out.last_hidden_state[:, :-1])], dim=1)  # e_1 stays
        out, kv = run(lm, embeds, cut(kv, 0, start))
    out, _ = run(lm, embed(lm, [eot, *tail]), kv)
    cue = [hidden[0, len(sample.cue)] for hidden in out.hidden_states[1:]]  # <eot> is column 0
    return {"ce": ce(lm, out.last_hidden_state[:, :-1], tail), "cue": cue, "kv": cut(kv, start, start + m)}


def codi_loss(mine, target):
    target = target.detach()
    return smooth_l1_loss(mine, target, reduction="sum") / target.std(), target.numel()


def kv_loss(lm, layer, teacher, latents, settings):
    """1/2 (keys + values), summed over kept slots, heads and D; and how many numbers were compared (keys = values)."""
    keys, values = (part[0].detach() for part in teacher["kv"][layer])  # [H, N, D]
    loss, kept, n = 0.0, [], keys.shape[1]
    if n * settings.num_latents == 0:
        return 0.0, 0
    importance = answer_to_cot(lm, layer, teacher, keys).softmax(-1).mean(1)  # [H, A, N] -> [H, N]
    for head, key in enumerate(keys):
        cosine = torch.stack([cosine_similarity(key, key[i], dim=-1) for i in range(n)])
        redundancy = (-(cosine.sum(1) - cosine.diagonal()) / n).softmax(-1)  # high = unlike the others
        score = settings.lambda_ * importance[head] + (1 - settings.lambda_) * redundancy
        kept.append(score.topk(min(n, settings.num_latents)).indices.sort().values)  # kept j pairs with latent j
    for mine, entries in zip(latents, (keys, values), strict=True):
        target = torch.stack([entries[head, index] for head, index in enumerate(kept)])  # [H, kept, D]
        loss += smooth_l1_loss(mine[0, :, : len(kept[0])], target, reduction="sum") / target.std() / 2
    return loss, target.numel()


def answer_to_cot(lm, layer, teacher, keys):
    """Logits [H, A, N] of the answer tokens on the chain of thought, the largest of each group of query heads."""
    before, (heads, _, size) = teacher["before"][layer], keys.shape
    if lm.config.model_type == "gpt2":
        block = lm.transformer.h[layer]
        query = block.attn.c_attn(block.ln_1(before)).chunk(3, dim=-1)[0].unflatten(-1, (-1, size))
    else:
        block = lm.model.layers[layer]
        query = block.self_attn.q_proj(block.input_layernorm(before)).unflatten(-1, (-1, size))
        if lm.config.model_type == "qwen3":
            query = block.self_attn.q_norm(query)
        cos, sin = (part[:, :, None] for part in lm.model.rotary_emb(before, torch.arange(before.shape[1])[None]))
        query = query * cos + torch.cat([-query[..., size // 2 :], query[..., : size // 2]], dim=-1) * sin
    grouped = query[0, teacher["answer"]].unflatten(1, (heads, -1))  # [A, H, R, D]
    return torch.einsum("ahrd,hnd->hran", grouped, keys).amax(1) * size**-0.5


if __name__ == "__main__":
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, **sizes))
    mlp = [torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)]
    projection = torch.nn.Sequential(*mlp, torch.nn.LayerNorm(32))
    samples = [Sample([5, 6, 7], list(range(10, 22)), [50, 51], [30, 31], 1), Sample([9, 5], [12], [50, 51], [32], 1)]
    for term, value in by_hand(llama, projection, samples, Settings((61, 62, 63), num_latents=6)).items():
        print(f"{term:<11}{value.item():.6f}")

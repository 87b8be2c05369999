"""Latent reasoning with transformers alone: the model thinks in M latents, input embeddings that are no words, then writes.

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    inputs = tokenizer(question + "\\n", return_tensors="pt")       # or tokenizer.apply_chat_template, see README.md
    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True)

    pass 0     [question <bot> <latent> x M]: the hidden state of each place, projected, is the embedding of the next
               latent: e_1 = prj(h(<bot>)), e_i = prj(h(latent i-1))
    rounds     e_1 .. e_M run in parallel after [question <bot>] and are projected again; e_1 stays (Jacobi iteration).
               "sequential": one latent after another instead
    answer     ordinary generation after the embeddings of [question <bot> e_1 .. e_M <eot> cue], as generation_config.json
               and the arguments of generate say

Needs torch and transformers (4.57 or later). latent_head.json and latent_head.safetensors beside this file hold M, the
number of rounds, the ids of the special tokens and prj; they belong to the weights in this folder.
"""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers.utils import cached_file


@torch.no_grad()
def generate(model, input_ids=None, attention_mask=None, inputs=None, mode=None, **arguments):
    """The question's ids and the ids of the answer after them, as `model.generate` returns them.

    Padding may be on either side. mode: latent, direct (no latents) or cot (written steps); default: as it was trained.
    """
    for name in ("custom_generate", "trust_remote_code"):  # what led here
        arguments.pop(name, None)
    ids = inputs if input_ids is None else input_ids
    if arguments.get("inputs_embeds") is not None:  # a finished prompt
        return GenerationMixin.generate(model, ids, attention_mask=attention_mask, **arguments)
    if ids is None:
        raise ValueError("give the question as input_ids")
    if attention_mask is None and (ids == model.generation_config.pad_token_id).any():
        raise ValueError("input_ids hold the padding token: give the attention_mask, too")
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids)
    order = mask.argsort(dim=1, stable=True)  # padding to the left, whichever side it was on
    embeds, mask = prompt_embeddings(model, ids.gather(1, order), mask.gather(1, order), mode)
    answer = GenerationMixin.generate(model, inputs_embeds=embeds, attention_mask=mask, **arguments)
    sequences = answer if isinstance(answer, torch.Tensor) else answer.sequences
    sequences = torch.cat([ids.repeat_interleave(len(sequences) // len(ids), 0), sequences], dim=1)
    if isinstance(answer, torch.Tensor):
        return sequences
    answer.sequences = sequences
    return answer


def prompt_embeddings(model, ids, mask, mode=None):
    """The input embeddings after which the answer begins, [B, L, E], and their mask; ids [B, Q] padded on the left."""
    head = latent_head(model)
    mode = mode or head.mode
    if mode not in ("latent", "direct", "cot") or (mode != "cot" and head.mode == "cot"):
        raise ValueError(f"mode {mode!r} is not possible: this model was trained for {head.mode!r}")
    embed = model.get_input_embeddings()

    def tokens(*numbers):
        return embed(torch.tensor(numbers, dtype=torch.long, device=ids.device).expand(len(ids), -1))

    parts = [embed(ids)]
    if mode == "latent" and head.feeds_back:
        parts += [tokens(head.bot), think(model, head, parts[0], mask, tokens), tokens(head.eot, *head.cue)]
    elif mode != "cot":  # no latents, or M pause tokens in their places
        slots = [head.latent] * head.num_latents if mode == "latent" else []
        parts += [tokens(head.bot, *slots, head.eot, *head.cue)]
    embeds = torch.cat(parts, dim=1)
    return embeds, nn.functional.pad(mask, (0, embeds.shape[1] - ids.shape[1]), value=1)


def think(model, head, question, mask, tokens):
    """e_1 .. e_M, [B, M, E]: the latents' input embeddings in their last pass."""
    cache, latents = DynamicCache(), head.num_latents
    decoder = next(part for part in (model.get_decoder(), model.base_model) if part is not model)  # varies by family

    def run(embeds):
        """Hidden states of `embeds` after what the cache holds; they are added to it."""
        columns = cache.get_seq_length() + embeds.shape[1]
        real = nn.functional.pad(mask, (0, columns - mask.shape[1]), value=1)
        positions = (real.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        return decoder(
            inputs_embeds=embeds, attention_mask=real, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def run_and_forget(embeds):
        hidden = run(embeds)
        cache.crop(-embeds.shape[1])
        return hidden

    slots = tokens(head.bot, *[head.latent] * latents)
    hidden = run(torch.cat([question, slots], dim=1))[:, question.shape[1] :]
    cache.crop(-latents)  # [question <bot>] stays
    if head.sequential:
        embeds = head(hidden[:, :1])
        for _ in range(latents - 1):
            embeds = torch.cat([embeds, head(run_and_forget(embeds)[:, -1:])], dim=1)
        return embeds
    embeds = head(hidden[:, :-1])
    for _ in range(head.num_rounds - 1):
        embeds = torch.cat([embeds[:, :1], head(run_and_forget(embeds)[:, :-1])], dim=1)
    return embeds


class LatentHead(nn.Module):
    """prj: a hidden state to an input embedding; with the numbers of latent_head.json."""

    def __init__(self, settings, weights, model):
        super().__init__()
        self.mode, self.sequential = settings["mode"], settings["method"] == "sequential"
        self.num_latents, self.num_rounds = settings["num_latents"], settings["num_rounds"]
        self.bot, self.latent, self.eot = (settings[name] for name in ("bot_id", "latent_id", "eot_id"))
        self.cue = settings["cue_ids"]
        self.feeds_back = self.num_latents > 0 and (self.sequential or self.num_rounds > 0)
        width, embed = model.config.hidden_size, model.get_input_embeddings()
        scale = settings["input_scale"]  # what the decoder multiplies its input embeddings by; Gemma 2: by version
        if scale == "sqrt":
            inside = hasattr(embed, "embed_scale")
            scale = 1.0 if inside else float(torch.tensor(width**0.5, dtype=embed.weight.dtype))
        self.scale = scale
        self.project: nn.Module = nn.Identity()
        if settings["projection"]:
            layers = (nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
            self.project = nn.Sequential(*layers)
        self.project.load_state_dict(weights, assign=True)  # names what lacks

    def forward(self, hidden):
        self.to(hidden.device)
        dtype = next((weight.dtype for weight in self.project.parameters()), hidden.dtype)
        embeds = self.project(hidden.to(dtype)).to(hidden.dtype)
        return embeds if self.scale == 1 else embeds / self.scale


def latent_head(model):
    """The head of the folder or repository that `model` was loaded from; read at the first call."""
    if "kava_latent_head" in vars(model):
        return vars(model)["kava_latent_head"]
    revision = getattr(model.config, "_commit_hash", None) or "main"

    def file(name):
        return cached_file(model.name_or_path, name, revision=revision)

    with open(file("custom_generate/latent_head.json"), encoding="utf-8") as text:
        settings = json.load(text)
    for name, weights in settings["weights"].items():  # transformers would only warn, and draw them at random
        with safe_open(file(name), "pt") as stored:
            if lacking := sorted(set(weights) - set(stored.keys())):
                raise ValueError(f"{name} of {model.name_or_path} lacks {', '.join(lacking)}: copy the file again")
    weights = load_file(file("custom_generate/latent_head.safetensors")) if settings["projection"] else {}
    vars(model)["kava_latent_head"] = head = LatentHead(settings, weights, model).eval().requires_grad_(False)
    return head

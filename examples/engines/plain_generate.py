"""Plain generation of transformers after prompt embeddings: no custom code, no kava.

kava export CHECKPOINT student --embeds prompts.safetensors --questions "How much is 3 + 4?"
python plain_generate.py student prompts.safetensors
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def answers(folder, prompts):
    """The ids of each answer, as generation_config.json of the folder says."""
    model, stored = AutoModelForCausalLM.from_pretrained(folder), load_file(prompts)
    embeds = stored["embeds"].to(model.dtype)
    columns = torch.arange(embeds.shape[1])
    mask = columns >= embeds.shape[1] - stored["lengths"][:, None]  # zeros on the left are padding
    return model.generate(inputs_embeds=embeds, attention_mask=mask.long())


if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    for row in answers(sys.argv[1], sys.argv[2]):
        print(tokenizer.decode(row, skip_special_tokens=True).strip())

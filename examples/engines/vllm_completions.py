"""A stock vLLM server answers after prompt embeddings, through its completions endpoint.

    kava export CHECKPOINT student --dtype bfloat16 --embeds prompts.safetensors --input_file questions.txt
    vllm serve student --enable-prompt-embeds --no-enable-prefix-caching
    python vllm_completions.py prompts.safetensors http://127.0.0.1:8000 student

Two rules. Send the whole prompt as embeddings, as here, not a mixture of tokens and embeddings; and switch the prefix cache
off: its keys lacked the places of embeddings in mixed prompts, and gave wrong text (vllm-project/vllm#56655). The chat
endpoint would write a template around the prompt, so it is the completions endpoint.
"""

import base64
import io
import json
import sys
import urllib.request

import torch
from safetensors.torch import load_file


def rows(path):
    """The prompts [L, E] without their padding."""
    stored = load_file(path)
    return [row[-length:] for row, length in zip(stored["embeds"], stored["lengths"].tolist(), strict=True)]


def payload(embeds, model, most=256):
    """The body of one request: the tensor as torch.save writes it, in base64."""
    buffer = io.BytesIO()
    torch.save(embeds.clone(), buffer)  # a view would carry the whole file along
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"model": model, "prompt": "", "prompt_embeds": encoded, "max_tokens": most, "temperature": 0}


def complete(server, body):
    """The text of the answer."""
    request = urllib.request.Request(f"{server}/v1/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["text"].strip()


if __name__ == "__main__":
    prompts, server, model = sys.argv[1:4]
    for row in rows(prompts):
        print(complete(server, payload(row, model)))

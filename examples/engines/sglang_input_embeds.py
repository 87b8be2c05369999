"""A stock SGLang server answers after prompt embeddings, through its own endpoint /generate.

    kava export CHECKPOINT student --dtype bfloat16 --embeds prompts.safetensors --input_file questions.txt
    python -m sglang.launch_server --model-path student --disable-radix-cache
    python sglang_input_embeds.py prompts.safetensors http://127.0.0.1:30000

The cache of prefixes must be off: it is looked up by token ids, which such a prompt does not have.
"""

import json
import sys
import urllib.request

from safetensors.torch import load_file


def rows(path):
    """The prompts [L, E] without their padding."""
    stored = load_file(path)
    return [row[-length:] for row, length in zip(stored["embeds"], stored["lengths"].tolist(), strict=True)]


def payload(embeds, most=256):
    """The body of one request: the embeddings as numbers."""
    return {"input_embeds": embeds.float().tolist(), "sampling_params": {"temperature": 0, "max_new_tokens": most}}


def complete(server, body):
    """The text of the answer."""
    request = urllib.request.Request(f"{server}/generate", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as response:
        return json.load(response)["text"].strip()


if __name__ == "__main__":
    for row in rows(sys.argv[1]):
        print(complete(sys.argv[2], payload(row)))

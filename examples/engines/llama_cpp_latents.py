"""A student thinks and answers in llama.cpp, unmodified, without torch: pass 0, the rounds and the answer.

    kava export CHECKPOINT --gguf student.gguf            # writes student.npz, too
    pip install llama-cpp-python tokenizers
    python llama_cpp_latents.py student.gguf "How much is 3 + 4?"

With embeddings on, llama.cpp gives the hidden state after the last norm; the projection is three lines of numpy, and a round
is taken back out of the cache before the next one. Token ids go in and out.
"""

import ctypes
import json
import math
import sys
from pathlib import Path

import llama_cpp as llama
import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float32])


class Thinker:
    """One sequence in llama.cpp's cache; `place` is the number of columns in it."""

    def __init__(self, path, f16_cache=False, columns=1024):
        self.read_head(path)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{path} cannot be read by llama.cpp")
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = columns
        options.embeddings = True
        options.flash_attn_type = 0  # off: it rounds, and a near tie turns
        if not f16_cache:
            options.type_k = options.type_v = 0  # F32
        self.context = llama.llama_init_from_model(self.model, options)
        self.width = llama.llama_model_n_embd(self.model)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.place = 0

    def read_head(self, path):
        head = np.load(Path(path).with_suffix(".npz"))
        self.weights = {name: head[name] for name in head.files}
        self.settings = json.loads(self.weights["settings"].tobytes())
        self.tokenizer_json = self.weights["tokenizer"].tobytes().decode()

    def run(self, inputs):
        """Hidden states [n, E] of n token ids or n embeddings [n, E], which are added to the cache."""
        count, by_id = len(inputs), not isinstance(inputs, np.ndarray)
        batch = llama.llama_batch_init(count, 0 if by_id else self.width, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = self.place + i, 1, True
            batch.seq_id[i][0] = 0
            if by_id:
                batch.token[i] = inputs[i]
        if not by_id:
            rows = np.ascontiguousarray(inputs, np.float32)
            ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        if llama.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama.cpp could not run the batch: is the question too long?")
        llama.llama_batch_free(batch)
        self.place += count
        return np.stack([self._row(llama.llama_get_embeddings_ith(self.context, i), self.width) for i in range(count)])

    def forget(self, count):
        """Takes the last columns back out of the cache."""
        self.place -= count
        llama.llama_memory_seq_rm(llama.llama_get_memory(self.context), 0, self.place, -1)

    def logits(self):
        return self._row(llama.llama_get_logits_ith(self.context, -1), self.vocabulary)

    def project(self, hidden):
        """Linear, GELU, Linear, LayerNorm; without a projection the hidden states themselves."""
        if not self.settings["projection"]:
            return hidden
        w = self.weights
        inner = hidden @ w["0.weight"].T + w["0.bias"]
        outer = (inner * (1 + erf(inner / math.sqrt(2))) / 2) @ w["2.weight"].T + w["2.bias"]
        centred = outer - outer.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
        return (centred / spread * w["3.weight"] + w["3.bias"]).astype(np.float32)

    def think(self, question):
        """Puts question, <bot> and the latents into the cache."""
        s = self.settings
        latents, sequential = s["num_latents"], s["method"] == "sequential"
        slots = [s["bot_id"]] + [s["latent_id"]] * latents
        hidden = self.run([*question, *slots])[len(question) :]
        if not latents or not (sequential or s["num_rounds"]):
            return  # no latents, or pause tokens
        self.forget(latents)
        embeds = self.project(hidden[:1] if sequential else hidden[:-1])
        for _ in range(latents - 1 if sequential else s["num_rounds"] - 1):
            hidden = self.run(embeds)
            self.forget(len(embeds))
            new = self.project(hidden[-1:] if sequential else hidden[:-1])
            embeds = np.concatenate([embeds if sequential else embeds[:1], new])
        self.run(embeds)

    def answer(self, question, most=64):
        """The ids of the greedy answer to a question's ids."""
        self.forget(self.place)
        if self.settings["mode"] == "latent":
            self.think(question)
            self.run([self.settings["eot_id"], *self.settings["cue_ids"]])
        else:
            self.run(list(question))
        answer = []
        while len(answer) < most and (token := int(self.logits().argmax())) != self.settings["eos_id"]:
            answer.append(token)
            self.run([token])
        return answer

    @staticmethod
    def _row(pointer, length):
        return np.ctypeslib.as_array(pointer, shape=(length,)).copy()


if __name__ == "__main__":
    from tokenizers import Tokenizer

    thinker = Thinker(sys.argv[1])
    tokenizer = Tokenizer.from_str(thinker.tokenizer_json)
    if thinker.settings["prompt"] != "plain":
        raise SystemExit("this student was trained on chats: give the ids of its chat template to Thinker.answer")
    print(tokenizer.decode(thinker.answer(tokenizer.encode(sys.argv[2] + "\n").ids)).strip())

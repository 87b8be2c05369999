"""examples/engines: what each sends, decoded again, is the prompt; a server of ours stands for the engine."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from hub import tiny_student
from kava.cli.main import main
from kava.export.embeds import prompt_embeds, write_embeds
from kava.infer.student import Student

ENGINES = Path(__file__).parents[2] / "examples" / "engines"
QUESTIONS = ["3+4?", "How many clips are left of 12?", "1?"]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ENGINES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its export and the prompt embeddings of the questions."""
    folder = tmp_path_factory.mktemp("engines")
    tiny_student(folder / "checkpoint")
    words = ["--embeds", str(folder / "prompts.safetensors"), "--questions", *QUESTIONS]
    assert main(["export", str(folder / "checkpoint"), str(folder / "student"), *words, "--quiet"]) == 0
    return folder


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """Its address, and the (path, body) of each request; it answers in both engines' forms."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, json.loads(body)))
            reply = json.dumps({"text": " 7 ", "choices": [{"text": " 7 "}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", requests
    http.shutdown()
    thread.join()
    http.server_close()


def test_plain_generate_gives_the_students_answers(place: Path) -> None:
    student = Student.from_pretrained(place / "checkpoint", "cpu")
    rows = example("plain_generate").answers(place / "student", place / "prompts.safetensors")
    texts = [student.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    assert texts == [answer.text for answer in student.answer(QUESTIONS)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_requests_hold_the_prompts(
    dtype: torch.dtype, place: Path, tmp_path: Path, server: tuple[str, list[Any]]
) -> None:
    address, requests = server
    student = Student.from_pretrained(place / "checkpoint", "cpu")
    wanted = [row.to(dtype) for row in prompt_embeds(student, QUESTIONS)]
    write_embeds(tmp_path / "prompts.safetensors", wanted)
    vllm, sglang = example("vllm_completions"), example("sglang_input_embeds")
    for row in vllm.rows(tmp_path / "prompts.safetensors"):
        assert vllm.complete(address, vllm.payload(row, "student")) == "7"
    for row in sglang.rows(tmp_path / "prompts.safetensors"):
        assert sglang.complete(address, sglang.payload(row)) == "7"
    paths = [path for path, _ in requests]
    assert paths == ["/v1/completions"] * 3 + ["/generate"] * 3
    for (_, body), row in zip(requests, wanted * 2, strict=True):
        if "prompt_embeds" in body:
            decoded = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
            assert decoded.untyped_storage().nbytes() == row.numel() * row.element_size()
        else:
            decoded = torch.tensor(body["input_embeds"]).to(dtype)
        assert torch.equal(decoded, row)


def test_every_example_is_short() -> None:
    for path in ENGINES.glob("*.py"):
        most = 140 if path.stem == "llama_cpp_latents" else 60
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most, path.name

"""The server as a process of its own, over real connections: many clients, rude ones, and a signal under load."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from served import QUESTIONS, lively_checkpoint

from kava.infer.sampling import Sampling
from kava.infer.student import Student
from kava.lab.bench.serve import load, server

pytestmark = pytest.mark.long
CLIENTS = 200
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_checkpoint(tmp_path_factory.mktemp("served") / "lively")


def bodies(count: int, max_tokens: int) -> list[dict]:
    return [{"prompt": QUESTIONS[i % len(QUESTIONS)], "max_tokens": max_tokens, "temperature": 0} for i in range(count)]


def answers(checkpoint: Path, count: int, max_tokens: int) -> list[str]:
    """What the library answers to `bodies`."""
    student = Student.from_pretrained(checkpoint)
    own = [a.text for a in student.answer(QUESTIONS, max_new_tokens=max_tokens, sampling=Sampling())]
    return [own[i % len(own)] for i in range(count)]


def texts(replies: list) -> list[str]:
    return [reply["choices"][0]["text"] if status == 200 else reply for status, reply in replies]


async def status_line(address: tuple[str, int], *parts: bytes, pause: float = 0.0) -> str:
    """The first line that comes back while and after the parts are sent, `pause` seconds apart."""
    reader, writer = await asyncio.open_connection(*address)
    line = asyncio.ensure_future(reader.readline())
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.wait([line], timeout=pause)
            if pause and line.done():
                break
        return (await asyncio.wait_for(line, 60)).decode().strip()
    finally:
        writer.close()


def request(body: dict) -> bytes:
    content = json.dumps(body).encode()
    return HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content


def held(process: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096


def test_ten_thousand_answers_of_200_clients_are_the_librarys_and_leave_no_memory_behind(checkpoint: Path):
    with server(checkpoint, 64, CLIENTS) as (address, process):
        first, _, _ = asyncio.run(load(address, bodies(1000, 8), CLIENTS))
        before = held(process.pid)
        rest, _, _ = asyncio.run(load(address, bodies(9000, 8), CLIENTS))
        after = held(process.pid)
    own = answers(checkpoint, 10_000, 8)
    assert texts(first) == own[:1000]
    assert texts(rest) == [own[i % len(QUESTIONS)] for i in range(9000)]
    assert after <= 1.05 * before


def test_a_signal_under_load_lets_what_was_accepted_finish(checkpoint: Path):
    count = 32

    async def until_the_end(address: tuple[str, int], process: subprocess.Popen) -> list[str]:
        connections = [await asyncio.open_connection(*address) for _ in range(count)]
        for (_, writer), body in zip(connections, bodies(count, 24), strict=True):
            writer.write(request(body))
        first = await connections[0][0].readuntil(b"\r\n\r\n")  # all were sent before the first answer came
        process.send_signal(signal.SIGTERM)
        replies = [await reader.read() for reader, _ in connections]
        replies[0] = first + replies[0]
        return [json.loads(reply.partition(b"\r\n\r\n")[2])["choices"][0]["text"] for reply in replies]

    with server(checkpoint, 4, CLIENTS) as (address, process):
        replies = asyncio.run(until_the_end(address, process))
        assert process.wait(60) == 128 + signal.SIGTERM
    assert replies == answers(checkpoint, count, 24)


def test_rude_clients_get_a_status_and_the_others_their_answers(checkpoint: Path):
    large = b'{"prompt": "' + b"1" * 10_000_000 + b'"}'

    async def rude(address: tuple[str, int]) -> tuple[list[str], Counter[str]]:
        slow = [
            status_line(address, HEAD + b"Content-Length: 90\r\n\r\n", *[b" "] * 60, pause=1.0),
            status_line(address, *[HEAD[i : i + 1] for i in range(60)], pause=1.0),
        ]
        said = asyncio.gather(
            status_line(address, HEAD + b"Content-Length: %d\r\n\r\n" % len(large), large),
            status_line(address, HEAD + b"Content-Length: 99999999999\r\n\r\n"),
            *slow,
        )
        many = await asyncio.gather(*(status_line(address, request(body)) for body in bodies(1000, 4)))
        return await said, Counter(line.split()[1] for line in many)

    with server(checkpoint, 64, 64) as (address, _):
        said, many = asyncio.run(rude(address))
        after, _, _ = asyncio.run(load(address, bodies(20, 8), 4))
    assert [line.split()[1] if line else "closed" for line in said] == ["413", "413", "408", "closed"]
    assert set(many) <= {"200", "429"}
    assert many["200"] >= 64
    assert texts(after) == answers(checkpoint, 20, 8)


def test_the_official_client(checkpoint: Path):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    student = Student.from_pretrained(checkpoint)
    with server(checkpoint, 64, CLIENTS) as (address, _):
        client = openai.OpenAI(base_url=f"http://{address[0]}:{address[1]}/v1", api_key="none")
        (model,) = client.models.list()
        for mode in ("latent", "cot", "direct"):
            for question in QUESTIONS:
                (own,) = student.answer([question], mode, max_new_tokens=12)
                words = {"model": model.id, "max_tokens": 12, "extra_body": {"reasoning": mode}, "temperature": 0}
                chat = {"messages": [{"role": "user", "content": question}], **words}
                whole = client.chat.completions.create(**chat)
                assert (whole.choices[0].message.content, whole.usage.forward_passes) == (own.text, own.forward_passes)
                parts = client.chat.completions.create(**chat, stream=True)
                assert "".join(part.choices[0].delta.content or "" for part in parts) == own.text
                assert client.completions.create(prompt=question, **words).choices[0].text == own.text


def test_curl(checkpoint: Path):
    with server(checkpoint, 64, CLIENTS) as (address, _):
        (body,) = bodies(1, 8)
        command = ["curl", "-sS", f"http://{address[0]}:{address[1]}/v1/completions", "--json", json.dumps(body)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(done.stdout)["choices"][0]["text"]] == answers(checkpoint, 1, 8)


def test_the_bench_compares_every_answer(checkpoint: Path, tmp_path: Path):
    words = ["bench", "serve", "--checkpoint", str(checkpoint), "--requests", "60", "--clients", "20", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "kava", *words], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["differences"] == []
    assert [part["max_batch"] for part in result["measured"]] == [64, 1]
    assert all(0 < part["p50_seconds"] <= part["p95_seconds"] for part in result["measured"])

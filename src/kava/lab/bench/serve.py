"""`kava bench serve`: a student's server under load, batching on against off, by a client that costs little itself."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.errors import RunError
from kava.infer.sampling import Sampling
from kava.infer.student import Student
from kava.lab.bench.timing import hardware
from kava.progress import progress as progress_of

PATH = "/v1/completions"


@contextmanager
def server(
    checkpoint: Path, max_batch: int, clients: int, words: Sequence[str] = ()
) -> Iterator[tuple[tuple[str, int], "subprocess.Popen[bytes]"]]:
    """The address of a server and its process, which is ended afterwards."""
    command = [sys.executable, "-m", "kava", "serve", str(checkpoint), "--port", "0", "--max_batch", str(max_batch)]
    command += ["--max_queue", str(2 * clients), "--request_timeout", "3600", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if b'"listening"' in line:
                    break
            else:
                raise RunError(f"the server did not start (exit code {process.wait()})", " ".join(command))
            host, _, port = json.loads(line)["url"].removeprefix("http://").rpartition(":")
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # its log
            yield (host, int(port)), process
            process.terminate()
            process.wait()
            drain.wait()
        finally:
            process.kill()


async def load(
    address: tuple[str, int], bodies: Sequence[dict[str, Any]], clients: int
) -> tuple[list[Any], list[float], float]:
    """What the server says to each body, the seconds that each took, and those of all; `clients` connections share them."""
    replies: list[Any] = [None] * len(bodies)
    seconds = [0.0] * len(bodies)
    numbers = iter(range(len(bodies)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*address)
        for number in numbers:
            began = time.perf_counter()
            replies[number] = await _post(reader, writer, bodies[number])
            seconds[number] = time.perf_counter() - began
        writer.close()
        await writer.wait_closed()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(min(clients, len(bodies)))))
    return replies, seconds, time.perf_counter() - began


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> Any:
    """The status and the JSON of a response, whose length is in its head."""
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + content)
    status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    length = next(int(field.partition(":")[2]) for field in fields if field.lower().startswith("content-length"))
    return int(status.split()[1]), json.loads(await reader.readexactly(length))


def bench(
    checkpoint: Path, student: Student, questions: Sequence[str], requests: int, clients: int, max_new_tokens: int,
    max_batch: int, repeats: int, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """The result as plain data; `differences` lists answers that are not the library's, and then no times are given."""
    bodies = [
        {"prompt": questions[i % len(questions)], "max_tokens": max_new_tokens, "temperature": 0}
        for i in range(requests)
    ]
    own = [answer.text for answer in student.answer(questions, max_new_tokens=max_new_tokens, sampling=Sampling())]
    differences: list[str] = []
    runs: dict[int, list[tuple[float, list[float]]]] = {max_batch: [], 1: []}
    with server(checkpoint, max_batch, clients) as (batched, _), server(checkpoint, 1, clients) as (single, _):
        for turn in range(repeats + 1):  # the first is not counted
            for size, address in ((max_batch, batched), (1, single)):
                with progress_of(f"{requests} requests, {clients} clients, batch {size}", show=progress):
                    replies, seconds, whole = asyncio.run(load(address, bodies, clients))
                if turn:
                    runs[size].append((whole, seconds))
                differences += _differences(replies, own, size)
    result: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "hardware": hardware(student.model.device),
        "requests": requests,
        "clients": clients,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "differences": differences[:20],
    }
    if not differences:
        result["measured"] = [_measured(size, requests, runs[size]) for size in runs]
        fast, slow = (part["requests_per_second"] for part in result["measured"])
        result["ratio"] = fast / slow
    return result


def _differences(replies: Sequence[Any], own: Sequence[str], size: int) -> list[str]:
    lines = []
    for number, (status, reply) in enumerate(replies):
        if status != 200:
            lines.append(f"batch {size}, request {number}: status {status}, {reply['error']['message']}")
        elif reply["choices"][0]["text"] != (text := own[number % len(own)]):
            lines.append(f"batch {size}, request {number}: {reply['choices'][0]['text']!r}, the library says {text!r}")
    return lines


def _measured(size: int, requests: int, runs: Sequence[tuple[float, list[float]]]) -> dict[str, float]:
    seconds = sorted(value for _, values in runs for value in values)
    return {
        "max_batch": size,
        "requests_per_second": requests * len(runs) / sum(whole for whole, _ in runs),
        "p50_seconds": seconds[len(seconds) // 2],
        "p95_seconds": seconds[len(seconds) * 95 // 100],
    }


def serve_text(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{result['requests']} requests by {result['clients']} clients, answers equal to the library's"]
    lines += [
        f"  max_batch {part['max_batch']:>4}   {part['requests_per_second']:8.1f} requests/s"
        f"   p50 {part['p50_seconds']:.3f} s   p95 {part['p95_seconds']:.3f} s"
        for part in result["measured"]
    ]
    return "\n".join([*lines, f"  batching: {result['ratio']:.1f} times as many requests a second"])

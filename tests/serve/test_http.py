"""The server's answers, errors and limits, in this process and without sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from functools import partial

import pytest
import torch

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'kava[serve]'")

from asgi import CHAT, call, leaves, run_app, stays
from served import QUESTIONS, lively_student
from starlette.testclient import TestClient

from kava.config import load_recipe
from kava.data.generator import Generator
from kava.errors import ConfigError
from kava.infer.sampling import Sampling
from kava.serve.app import create_app
from kava.serve.facts import facts_of
from kava.serve.limits import ServeLimits
from kava.serve.log import JsonLines
from kava.serve.server import Address, open_socket
from kava.serve.service import Service

PLAIN = "/v1/completions"
LIMITS = ServeLimits(max_batch=4, max_queue=8, max_input_tokens=60, max_new_tokens=40, max_body_bytes=4096)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return lively_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture(scope="module")
def client(student):
    with TestClient(create_app(Service(student, "tiny", LIMITS)), base_url="http://localhost") as client:
        yield client


def chat(question: str, **more):
    return {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": 9, **more}


def events(response) -> list:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("mode", ["latent", "cot", "direct"])
def test_answers_and_their_cost_are_the_librarys(client, student, mode):
    for question in QUESTIONS[:3]:
        own = student.answer([question], mode, max_new_tokens=9)[0]
        reply = client.post(CHAT, json=chat(question, reasoning=mode)).json()
        assert reply["choices"][0]["message"]["content"] == own.text
        assert reply["choices"][0]["finish_reason"] == ("length" if own.truncated else "stop")
        usage = reply["usage"]
        assert usage["prompt_tokens"] == len(student.encode([question])[0])
        assert usage["completion_tokens"] == own.num_tokens
        assert (usage["forward_passes"], usage["executed_calls"]) == (own.forward_passes, own.executed)


def test_m_and_t_are_the_requests(client):
    few, many = (
        client.post(CHAT, json=chat("3+4?", num_tokens=m, num_iterations=t)).json() for m, t in ((1, 1), (3, 4))
    )
    assert [reply["usage"]["latents"] for reply in (few, many)] == [1, 3]
    passes = [reply["usage"]["forward_passes"] - reply["usage"]["completion_tokens"] for reply in (few, many)]
    assert passes == [2, 5]


def test_ablated_latents_are_evaluates(client, student):
    question = QUESTIONS[-1]
    thought = student.think([question])
    first, every = thought.clone(), torch.zeros_like(thought)
    first[:, 0] = 0
    for latents, fields in ((every, {}), (first, {"ablate_slots": [0, 0]})):
        own = student.answer([question], max_new_tokens=9, latents=latents)[0]
        reply = client.post(CHAT, json=chat(question, ablate="zero", **fields)).json()
        assert reply["choices"][0]["message"]["content"] == own.text
        assert reply["usage"]["forward_passes"] == own.forward_passes
    refused = client.post(CHAT, json=chat(question, ablate="swap")).json()["error"]
    assert refused["message"] == "ablate: swap is made of the latents of several questions; a question alone has zero"


def test_several_prompts_and_seeded_choices(client, student):
    sampling = Sampling(0.9, 0.8, 7)
    own = student.answer(QUESTIONS[:2], max_new_tokens=9, sampling=sampling, samples=3)
    body = {"prompt": QUESTIONS[:2], "n": 3, "temperature": 0.9, "top_p": 0.8, "seed": 7, "max_tokens": 9}
    reply = client.post(PLAIN, json=body).json()
    assert [choice["text"] for choice in reply["choices"]] == [answer.text for row in own for answer in row]
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert reply["usage"]["completion_tokens"] == sum(answer.num_tokens for row in own for answer in row)


def test_streams(client, student):
    question = QUESTIONS[-1]
    own = student.answer([question], max_new_tokens=9)[0]
    body = chat(question, stream=True, stream_options={"include_usage": True})
    response = client.post(CHAT, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = events(response)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == own.text
    assert chunks[-1]["choices"][0]["finish_reason"] == ("length" if own.truncated else "stop")
    assert usage["choices"] == []
    assert usage["usage"]["forward_passes"] == own.forward_passes
    body["stream_options"]["continuous_usage_stats"] = True
    growing = [chunk["usage"]["forward_passes"] for chunk in events(client.post(CHAT, json=body))]
    assert growing == sorted(growing)
    assert growing[0] < growing[-1] == own.forward_passes
    plain = events(client.post(PLAIN, json={"prompt": question, "max_tokens": 9, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in plain) == own.text


def test_models_and_states(client):
    model = client.get("/v1/models").json()["data"][0]
    assert model["id"] == "tiny"
    assert (model["kava"]["num_tokens"], model["kava"]["reasoning"]) == (3, "latent")
    assert client.get("/v1/models/tiny").status_code == 200
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
    text = client.get("/metrics").text
    assert 'kava_requests_total{path="/v1/models",status="200"}' in text
    assert "kava_answer_tokens_total" in text
    assert 'kava_request_seconds_bucket{le="+Inf"}' in text


ERRORS = [
    (CHAT, {"foo": 1}, 400, "foo"),
    (CHAT, {"reasoning": "deep"}, 400, "reasoning"),
    (CHAT, {"model": "gpt-5"}, 404, "model"),
    (CHAT, {"messages": []}, 400, "messages"),
    (
        CHAT,
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3?"}]},
        400,
        "messages",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "  "}]}, 400, None),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "a\0b"}]}, 400, None),
    (CHAT, {"messages": [{"role": "user", "content": "3+4? " * 100}]}, 400, None),
    (CHAT, {"max_tokens": 41}, 400, "max_tokens"),
    (CHAT, {"max_tokens": 0}, 400, "max_tokens"),
    (CHAT, {"max_completion_tokens": 7}, 400, "max_tokens"),
    (CHAT, {"temperature": -1}, 400, "temperature"),
    (CHAT, {"temperature": True}, 400, "temperature"),
    (CHAT, {"top_p": 0}, 400, "top_p"),
    (CHAT, {"n": 2}, 400, "n"),
    (CHAT, {"n": 17, "temperature": 1}, 400, "n"),
    (CHAT, {"presence_penalty": 1}, 400, "presence_penalty"),
    (CHAT, {"stop": ""}, 400, "stop"),
    (CHAT, {"num_tokens": 3, "reasoning": "cot"}, 400, "num_tokens"),
    (CHAT, {"num_iterations": -1}, 400, "num_iterations"),
    (CHAT, {"ablate": "one"}, 400, "ablate"),
    (CHAT, {"ablate": "mean"}, 400, "ablate"),
    (CHAT, {"ablate": "zero", "reasoning": "cot"}, 400, "ablate"),
    (CHAT, {"ablate": "zero", "num_iterations": 0}, 400, "ablate"),
    (CHAT, {"ablate": "zero", "ablate_slots": []}, 400, "ablate_slots"),
    (CHAT, {"ablate": "zero", "ablate_slots": [-1]}, 400, "ablate_slots"),
    (CHAT, {"ablate": "zero", "ablate_slots": [99]}, 400, "ablate_slots"),
    (CHAT, {"ablate_slots": [0]}, 400, "ablate_slots"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "stream_options"),
    (PLAIN, {"prompt": [1, 2]}, 400, "prompt"),
    (PLAIN, {"prompt": []}, 400, "prompt"),
    ("/v1/embeddings", {}, 404, None),
]


@pytest.mark.parametrize(("path", "change", "status", "param"), ERRORS)
def test_a_wrong_request_is_a_status_and_a_sentence(client, path, change, status, param):
    body = {**(chat("3+4?") if path == CHAT else {"prompt": "3+4?"}), **change}
    response = client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert error["message"]
    assert "\n" not in error["message"]
    assert param is None or (error["param"] or "").split(".")[0] == param


def test_what_clients_send_and_means_nothing_here_is_taken(client):
    more = {
        "user": "me",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "tools": [],
    }
    more |= {"response_format": {"type": "text"}, "n": 1, "stop": None, "seed": 3, "stream": False, "metadata": None}
    assert client.post(CHAT, json=chat("3+4?", **more)).status_code == 200
    parts = [{"type": "text", "text": "3+"}, {"type": "text", "text": "4?"}]
    body = chat("") | {"messages": [{"role": "user", "content": parts}]}
    assert client.post(CHAT, json=body).json()["choices"] == client.post(CHAT, json=chat("3+4?")).json()["choices"]


def test_bodies_that_are_no_request(client):
    headers = {"Content-Type": "application/json"}
    for body in (
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 2000,
        b'{"prompt": 1e999}',
        b'{"a": ' + b"9" * 4000 + b"}",
    ):
        assert client.post(PLAIN, content=body, headers=headers).status_code == 400, body[:20]
    assert client.post(PLAIN, content=b"x" * 5000, headers=headers).status_code == 413
    assert client.post(PLAIN, content=iter([b"x" * 3000, b"y" * 3000]), headers=headers).status_code == 413
    assert client.post(PLAIN, content=b'{"prompt": "3"}').status_code == 415
    assert client.get(PLAIN).status_code == 405


def test_names_and_keys(student):
    app = create_app(Service(student, "tiny", LIMITS), "secret-key", ["kava.example"])
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/health").status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-key"}):
            response = client.get("/v1/models", headers=header)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        key = {"Authorization": "Bearer secret-key"}
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "kava.example", "KAVA.example:9"):
            assert client.get("/v1/models", headers={**key, "Host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", ""):
            assert client.get("/v1/models", headers={**key, "Host": host}).status_code == 421
        assert "access-control-allow-origin" not in client.options(CHAT, headers={**key, "Origin": "http://a"}).headers


@pytest.mark.parametrize("stream", [False, True])
def test_wholeaves_is_not_answered_any_more(student, stream):
    service = Service(student, "tiny", LIMITS)
    body = json.dumps(chat("3+4?", stream=stream, max_tokens=40)).encode()
    sent = run_app(service, lambda app: call(app, body, leaves))
    assert not any(b"[DONE]" in message.get("body", b"") for message in sent)
    assert not service._open
    assert 'status="499"' in service.metrics.text()


def test_too_many_at_once_are_told_when_to_come_again(student):
    service = Service(student, "tiny", ServeLimits(max_batch=1, max_queue=2))
    body = json.dumps(chat("3+4?")).encode()
    sent = run_app(service, lambda app: asyncio.gather(*(call(app, body, stays) for _ in range(9))))
    starts = [next(message for message in messages if "status" in message) for messages in sent]
    assert sorted(start["status"] for start in starts) == [200] * 3 + [429] * 6
    refused = next(start for start in starts if start["status"] == 429)
    assert int(dict(refused["headers"])[b"retry-after"]) >= 1


def test_time_limits(student):
    service = Service(student, "tiny", ServeLimits(body_timeout=0.01, request_timeout=0.0))
    body = json.dumps(chat("3+4?", max_tokens=500)).encode()
    sent = run_app(service, lambda app: asyncio.gather(call(app, body, stays), call(app, b"", stays)))
    assert [messages[0]["status"] for messages in sent] == [504, 408]
    assert not service._open


def test_a_server_that_ends_takes_nothing_new(student):
    service = Service(student, "tiny", LIMITS)
    service.draining = True
    sent = run_app(service, lambda app: call(app, b"{}", stays))
    assert sent[0]["status"] == 503


def test_an_engine_that_dies_fails_what_is_open(student, monkeypatch):
    service = Service(student, "tiny", LIMITS)
    monkeypatch.setattr(service.engine, "_join", lambda _: 1 / 0)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    body = json.dumps(chat("3+4?")).encode()
    sent = run_app(service, lambda app: call(app, body, stays))
    assert sent[0]["status"] == 503
    assert not service.alive


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_no_questions_unless_wanted(student, caplog, log_prompts):
    service = Service(student, "tiny", LIMITS)
    with (
        caplog.at_level(logging.INFO, "kava.serve"),
        TestClient(create_app(service, log_prompts=log_prompts), base_url="http://localhost") as client,
    ):
        client.post(CHAT, json=chat("9*9*9?"))
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    assert lines[-1]["status"] == 200
    assert lines[-1]["forward_passes"] > 0
    assert ("9*9*9?" in json.dumps(lines)) == log_prompts


@pytest.mark.parametrize(("name", "mode", "latents"), [("embedded", "latent", 3), ("explicit_embedded", "cot", 0)])
def test_what_v1_models_says_of_a_student(name, mode, latents):
    facts = facts_of(load_recipe(name))
    assert (facts["reasoning"], facts["num_tokens"]) == (mode, latents)
    assert ("latent" in facts["untrained"]) == (mode == "cot")
    settings = load_recipe(name).dataset
    trained = {row.question for row in Generator(settings.name, settings.generator, settings.seed).split("train")}
    assert len(facts["examples"]) == 3
    assert not trained & set(facts["examples"])


@pytest.mark.parametrize("host", ["a" * 300, "\udcff", "", "1.2.3.x"])
def test_what_is_no_address_is_refused(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getaddrinfo", partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST))
    with pytest.raises(ConfigError, match="give an address of this machine"):
        open_socket(Address(host, 0), None)

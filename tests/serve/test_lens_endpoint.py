"""POST /lens: the library's lens, while answers go on; its limits and its errors."""

import asyncio
import json
import threading

import pytest
import torch

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'kava[serve]'")

from asgi import CHAT, call, run_app, stays
from served import QUESTIONS, lively_student
from starlette.testclient import TestClient

from kava import lens
from kava.backbone.fold import has_adapters
from kava.backbone.lora import add_lora
from kava.config import LoraConfig
from kava.infer.student import Student
from kava.serve.app import create_app
from kava.serve.limits import ServeLimits
from kava.serve.service import Service

LIMITS = ServeLimits(max_input_tokens=60, max_new_tokens=12, max_lenses=1)
QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return lively_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture(scope="module")
def client(student):
    with TestClient(create_app(Service(student, "tiny", LIMITS)), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("own", [{}, {"num_tokens": 2}, {"num_iterations": 4}])
def test_it_is_the_librarys_with_m_and_t_of_the_request(client, student, own):
    recipe = student.recipe.changed("latent", **own)
    student.model.latent = recipe.latent
    try:
        same = Student(student.model, student.tokenizer, recipe)
        limit = min(recipe.evaluation.max_new_tokens, LIMITS.max_new_tokens)
        wanted = lens.look(same, [QUESTION], top=3, max_new_tokens=limit).to_dict()
    finally:
        student.model.latent = student.recipe.latent
    assert client.post("/lens", json={"question": QUESTION, "top": 3, **own}).json() == wanted
    assert client.post(CHAT, json=_chat()).json()["usage"]["latents"] == 3  # the served student is as it was


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        ({"question": " "}, 400, "empty"),
        ({"question": "3+4? " * 40}, 400, "at most 60"),
        ({"question": None}, 400, "question"),
        ({"num_iterations": 0}, 400, "pause tokens"),
        ({"num_tokens": 65}, 400, "64"),
        ({"top": 0}, 400, "top"),
        ({"reasoning": "cot"}, 400, "reasoning"),
        ({"model": "other"}, 404, "other"),
    ],
)
def test_refusals(client, change, status, part):
    response = client.post("/lens", json={"question": QUESTION, **change})
    assert response.status_code == status
    assert part in response.json()["error"]["message"]


def test_one_too_many_is_told_to_come_again_and_a_bug_ends_nothing_else(student, monkeypatch):
    entered, gate = threading.Event(), threading.Event()

    def slow(*_):
        entered.set()
        gate.wait(10)
        raise ZeroDivisionError

    monkeypatch.setattr("kava.serve.service.look_between_steps", slow)
    service, body = Service(student, "tiny", LIMITS), _body()

    async def work(app):
        first = asyncio.create_task(call(app, body, stays, "/lens"))
        await asyncio.to_thread(entered.wait, 10)
        second = await call(app, body, stays, "/lens")
        gate.set()
        with pytest.raises(ZeroDivisionError):  # that is, 500 and the server's log
            await first
        return second, await call(app, json.dumps(_chat()).encode(), stays)

    refused, answered = run_app(service, work)
    assert refused[0]["status"] == 429
    assert int(dict(refused[0]["headers"])[b"retry-after"]) >= 1
    assert answered[0]["status"] == 200
    assert 'path="/lens",status="500"' in service.metrics.text()


def test_who_leaves_before_it_begins_costs_nothing(student, monkeypatch):
    looks = []
    monkeypatch.setattr("kava.serve.service.look_between_steps", lambda *_: looks.append(1) or {})
    service, gate = Service(student, "tiny", LIMITS), threading.Event()

    async def work(app):
        blocking = service._worker.call(lambda: gate.wait(10))
        waiting = asyncio.create_task(call(app, _body(), _leaves_soon, "/lens"))
        await waiting
        gate.set()
        await asyncio.wrap_future(blocking)
        await asyncio.wrap_future(service._worker.call(lambda: None))

    run_app(service, work)
    assert looks == []
    assert service._lenses == 0


@pytest.mark.parametrize("adapters", [False, True])
def test_looks_and_answers_do_not_change_each_other(tmp_path, adapters):
    student = lively_student(tmp_path / "run")
    if adapters:  # the engine answers with a folded copy of the model
        _adapt(student)
        assert has_adapters(student.model)
    service = Service(student, "tiny", ServeLimits(max_batch=3, max_new_tokens=12))
    wanted = [student.answer([question], max_new_tokens=12)[0].text for question in QUESTIONS]
    looks = [{"question": QUESTION, "num_iterations": t, "num_tokens": m} for t, m in ((1, 2), (4, 3), (2, 1))]

    async def work(app):
        chats = [call(app, json.dumps(_chat(question, 12)).encode(), stays) for question in QUESTIONS]
        lenses = [call(app, json.dumps(one).encode(), stays, "/lens") for one in looks]
        return await asyncio.gather(*(one for pair in zip(chats, lenses, strict=False) for one in pair), *chats[3:])

    bodies = [json.loads(sent[1]["body"]) for sent in run_app(service, work)]
    texts = {body["choices"][0]["message"]["content"] for body in bodies if "choices" in body}
    assert texts == set(wanted)
    reports = [body for body in bodies if "kava_lens" in body]
    assert [(len(report["attention"][0]), report["questions"][0]["forward_passes"]) for report in reports] == [
        (m, _passes(student, t, m)) for t, m in ((1, 2), (4, 3), (2, 1))
    ]


def _adapt(student):
    model = student.model
    settings = LoraConfig(r=2, alpha=4, dropout=0.0)
    model.backbone = add_lora(model.causal_lm, model.family, model.special, settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.2 * torch.randn_like(weight))
    model.double()


def _passes(student, t, m):
    student.model.latent = student.recipe.changed("latent", num_iterations=t, num_tokens=m).latent
    return student.answer([QUESTION])[0].forward_passes


def test_no_memory_is_said(student, monkeypatch):
    monkeypatch.setattr("kava.serve.service.look_between_steps", lambda *_: _raise(torch.OutOfMemoryError("no memory")))
    sent = run_app(Service(student, "tiny", LIMITS), lambda app: call(app, _body(), stays, "/lens"))
    assert sent[0]["status"] == 503
    assert b"memory" in sent[1]["body"]


def _raise(error):
    raise error


def _body():
    return json.dumps({"question": QUESTION}).encode()


async def _leaves_soon():
    for _ in range(20):
        await asyncio.sleep(0)
    return {"type": "http.disconnect"}


def _chat(question=QUESTION, limit=5):
    return {"messages": [{"role": "user", "content": question}], "max_tokens": limit}

"""The playground: its page and policy, and in a real browser a question from the keyboard to both answers and the lens."""

import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'kava[serve]'")

import uvicorn
from chromium import CHROMIUM, Browser, Page, browser
from served import QUESTIONS, lively_student
from starlette.testclient import TestClient

from kava.infer.checks import arithmetic
from kava.infer.student import Answer, Student
from kava.serve.app import create_app
from kava.serve.engine import Engine
from kava.serve.playground import playground
from kava.serve.server import Address, open_socket
from kava.serve.service import Service

QUESTION = QUESTIONS[-1]
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return lively_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


def test_one_page_whose_policy_allows_its_own_style_and_script_alone(student):
    with TestClient(create_app(Service(student, "tiny"), "secret-key"), base_url="http://localhost") as client:
        response = client.get("/")  # needs no key: it says nothing about the student
    page, policy = response.text, response.headers["content-security-policy"]
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|(src|href)=.https?:", page)
    assert "tiny" not in page


def test_the_script_names_parts_that_exist():
    page, _ = playground()
    ids = set(re.findall(r'id="([\w-]+)"', page))
    assert set(re.findall(r'element\("([\w-]+)"\)', page)) <= ids
    assert set(re.findall(r'(?:for|aria-labelledby|aria-describedby)="([\w-]+)"', page)) <= ids


@contextmanager
def serving(service: Service, key: str | None = None) -> Iterator[str]:
    """The address of the service on a free port."""
    sock = open_socket(Address(port=0), None)
    sock.listen()
    server = uvicorn.Server(uvicorn.Config(create_app(service, key), log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def ready(chromium: Browser, url: str, width: int = 1400, dark: bool = False) -> Page:
    page = chromium.page()
    page.size(width, 900, dark)
    page.open(url)
    return page


def wait_for_answers(page: Page) -> None:
    page.wait("document.querySelectorAll('.answer[aria-busy=false]').length === 2")
    page.wait("document.getElementById('stop').hidden")


def check_side(page: Page, side: str, own: Answer) -> None:
    """The answer and its figures are those of the library."""
    assert page.text(f"#{side} .answer") == own.text
    assert page.text(f"#{side} .count") == str(own.forward_passes)
    assert page.text(f"#{side} .tokens") == str(own.num_tokens)
    assert int(page.text(f"#{side} .time")) > 0
    thinks = own.forward_passes - own.num_tokens - 1
    label = f"1 pass reads, {thinks} think, {own.num_tokens} write"
    assert page.value(f"document.querySelector('#{side} .passes').ariaLabel") == label


def answer(student: Student, mode: str, latents: torch.Tensor | None = None, **latent: int) -> Answer:
    student.model.latent = student.recipe.changed("latent", **latent).latent
    try:
        return student.answer([QUESTION], mode, latents=latents)[0]
    finally:
        student.model.latent = student.recipe.latent


@pytest.mark.long
@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (400, False), (400, True)])
def test_a_question_from_the_keyboard_to_the_lens(student, chromium, tmp_path, width, dark):
    words, trained = answer(student, "cot"), student.recipe.latent
    with serving(Service(student, "tiny")) as url:
        page = ready(chromium, url, width, dark)
        page.wait("document.activeElement.id === 'question'")
        assert arithmetic(student.recipe)[1:] in page.text("#about")
        page.write(QUESTION)
        page.press("Enter")
        wait_for_answers(page)
        check_side(page, "in-latents", answer(student, "latent"))
        check_side(page, "in-words", words)
        assert page.text("#status").startswith("Latents took ")

        page.press("Tab", "Tab", "Tab", "Tab", "ArrowRight")  # over the examples to T
        assert page.text("#rounds-value") == str(trained.num_iterations + 1)
        page.click("#ask button.main")
        wait_for_answers(page)
        check_side(page, "in-latents", answer(student, "latent", num_iterations=trained.num_iterations + 1))

        page.press("Escape")
        page.value("document.getElementById('zeroed').focus()")
        page.press("End")
        assert page.text("#zeroed-value") == "all"
        page.value("document.getElementById('rounds').focus()")
        page.press("Home", *["ArrowRight"] * trained.num_iterations)
        page.click("#ask button.main")
        wait_for_answers(page)
        zeros = torch.zeros(1, trained.num_tokens, student.model.config.hidden_size)
        check_side(page, "in-latents", answer(student, "latent", zeros))
        assert "z1 to z3 set to zero" in page.text("#in-latents .note")

        page.click("#lens summary")
        page.wait("document.querySelectorAll('#lens-room table').length === 3")
        assert page.text("#lens-room h3") == QUESTION
        page.screenshot(tmp_path / f"{width}.png")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.log == []
        assert all(address.startswith(url) for address in page.urls if not address.startswith("data:"))


@contextmanager
def held(engine: Engine, monkeypatch) -> Iterator[threading.Event]:
    """The engine takes no step until the event is set."""
    gate, step = threading.Event(), engine.step
    monkeypatch.setattr(engine, "step", lambda: gate.wait() and step())
    try:
        yield gate
    finally:
        gate.set()


@pytest.mark.long
@in_a_browser
def test_who_asks_twice_or_presses_escape_stops_what_was_asked(student, chromium, monkeypatch):
    service, busy = Service(student, "tiny"), "document.querySelectorAll('.answer[aria-busy=true]').length"
    left = 'kava_requests_total{path="/v1/chat/completions",status="499"} '
    with serving(service) as url, held(service.engine, monkeypatch) as gate:
        page = ready(chromium, url)
        page.wait("document.activeElement.id === 'question'")
        page.write(QUESTION)
        page.press("Enter")
        page.until(lambda: len(service._open) == 2)
        page.press("Enter")  # asks anew; the end of the first attempt is no end of the second
        page.until(lambda: f"{left}2" in service.metrics.text())
        assert page.value(busy) == 2
        assert page.text("#in-latents .problem") == ""
        page.press("Escape")
        wait_for_answers(page)
        assert [page.text(f"#{side} .problem") for side in ("in-latents", "in-words")] == ["Stopped."] * 2
        page.until(lambda: f"{left}4" in service.metrics.text())
        gate.set()
        page.click("#examples button")
        page.wait("document.getElementById('status').textContent.startsWith('Latents took')")
        assert page.value("document.getElementById('question').value") == service.facts["examples"][0]


@pytest.mark.long
@in_a_browser
def test_a_key_is_typed_in_and_kept_nowhere(student, chromium):
    with serving(Service(student, "tiny"), "secret-key") as url:
        page = ready(chromium, url)
        page.wait("document.activeElement.id === 'key'")
        page.write("wrong")
        page.press("Enter")
        page.wait("document.getElementById('student').textContent.startsWith('wrong')")
        page.write("secret-key")
        page.press("Enter")
        page.wait("document.activeElement.id === 'question'")
        page.write("?" * 5000)
        page.press("Enter")
        wait_for_answers(page)
        assert "at most 2048" in page.text("#in-latents .problem")
        kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        assert "secret-key" not in page.value(kept)

"""/v1/models, /v1/completions and /v1/chat/completions, whole and as a stream of events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kava.infer.student import Answer
from kava.serve.api_error import ApiError, ClientGone
from kava.serve.ask import Ask, Update
from kava.serve.schema import AnswerRequest, ChatRequest, CompletionRequest
from kava.serve.service import Service

Result = TypeVar("Result")
ONE_QUESTION = "messages: give one user message, the question; this student knows no earlier turns and no instructions"
Format = Callable[[str, str | None, bool], dict[str, Any]]  # text, finish reason, whether it is the first -> a choice


def completions_router(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.model_name:
            raise ApiError(404, f"model: {name[:100]!r} is not served here; this is {service.model_name!r}", "model")
        return JSONResponse(_model(service))

    @router.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        asks = service.asks(body, body.prompts, body.max_tokens)
        return await _respond(service, asks, body, body.prompts, request, chat=False)

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        if [message.role for message in body.messages] != ["user"]:
            raise ApiError(400, ONE_QUESTION, "messages")
        limit, other = body.max_completion_tokens, body.max_tokens
        if limit is not None and other is not None and limit != other:
            raise ApiError(400, "max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
        question = body.messages[0].text
        asks = service.asks(body, [question], limit or other)
        return await _respond(service, asks, body, [question], request, chat=True)

    return router


def _model(service: Service) -> dict[str, Any]:
    model = {"id": service.model_name, "object": "model", "created": service.created, "owned_by": "kava"}
    return {**model, "kava": service.facts}


async def _respond(
    service: Service, asks: Sequence[Ask], body: AnswerRequest, questions: Sequence[str], request: Request, chat: bool
) -> Response:
    reply = Reply(service, asks, body, chat, request.scope["kava"])
    reply.notes["question"] = list(questions)
    if body.stream:
        first = reply.updates.__anext__()  # refused before anything is sent
        return EventStream(reply, await until_gone(request.receive, first))
    if body.stream_options is not None:
        raise ApiError(400, "stream_options has no effect without stream", "stream_options")
    return JSONResponse(await until_gone(request.receive, reply.whole()))


class Reply:
    """The answers to one request, in the API's shape; `notes` go to the log."""

    def __init__(self, service: Service, asks: Sequence[Ask], body: AnswerRequest, chat: bool, notes: dict[str, Any]):
        self.asks, self.body, self.chat, self.notes = asks, body, chat, notes
        self.updates = service.answers(asks)
        self._service, self._began = service, time.monotonic()
        self._answers: dict[Ask, Answer] = {}
        self._made: dict[Ask, int] = {}  # tokens of each answer so far
        kind = ("chatcmpl-", "chat.completion") if chat else ("cmpl-", "text_completion")
        self._head = {"id": kind[0] + secrets.token_hex(12), "object": kind[1], "created": int(time.time())}
        self._head["model"] = service.model_name

    async def whole(self) -> dict[str, Any]:
        """The response without streaming."""
        finals: dict[Ask, Update] = {}
        async with aclosing(self.updates) as updates:
            async for update in updates:
                self._note(update)
                if update.final:
                    finals[update.ask] = update
        choices = []
        for index, ask in enumerate(self.asks):
            text = self._answers[ask].text
            content: dict[str, Any] = {"text": text}
            if self.chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": finals[ask].finish_reason})
        return {**self._head, "choices": choices, "usage": self.usage()}

    async def events(self, first: Update) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream; an error ends it."""
        begun: set[Ask] = set()
        async with aclosing(self.updates) as updates:
            update: Update | None = first
            while update is not None:
                try:
                    self._note(update)
                except ApiError as error:
                    yield error.body
                    return
                yield self._chunk(update, update.ask not in begun)
                begun.add(update.ask)
                update = await anext(updates, None)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield {**self._chunk_head(), "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens of the questions, each once, and of the answers with their ends; passes by the method's rule; so far."""
        question = sum(len(ask.ids) for ask in self.asks if ask.number == 0)
        made = sum(self._made.values())
        return {
            "prompt_tokens": question,
            "completion_tokens": made,
            "total_tokens": question + made,
            "latents": sum(ask.latent.num_tokens for ask in self.asks if ask.mode == "latent"),
            "forward_passes": sum(1 + ask.rounds + count for ask, count in self._made.items()),
            "executed_calls": sum(ask.rounds + count for ask, count in self._made.items()),
        }

    def _note(self, update: Update) -> None:
        """Keeps what a final update says; an answer that could not be made is an error."""
        if "first_token_seconds" not in self.notes and (update.text or update.answer):
            seconds = time.monotonic() - self._began
            self.notes["first_token_seconds"] = round(seconds, 4)
            self._service.metrics.observe("kava_first_token_seconds", seconds)
        if update.error is not None:
            raise ApiError(503, update.error)
        self._made[update.ask] = update.tokens
        if update.answer is not None:
            self._answers[update.ask] = update.answer
        if len(self._answers) == len(self.asks):
            self.notes |= {"reasoning": update.ask.mode, **self.usage()}
            self.notes["answer"] = [self._answers[ask].text for ask in self.asks]

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self.chat else self._head

    def _chunk(self, update: Update, first: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"text": update.text}
        if self.chat:
            delta = {"role": "assistant", "content": update.text} if first else {"content": update.text}
            content = {"delta": delta if first or update.text else {}}
        reason = update.finish_reason
        choice = {"index": self.asks.index(update.ask), **content, "logprobs": None, "finish_reason": reason}
        options = self.body.stream_options
        usage = {"usage": self.usage()} if options is not None and options.continuous_usage_stats else {}
        return {**self._chunk_head(), "choices": [choice], **usage}


class EventStream(Response):
    """Server-sent events; the answers are cancelled when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, reply: Reply, first: Update):
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._reply, self._first = reply, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send_all(send))
        except ClientGone:
            self._reply.notes["gone"] = True
        finally:
            await self._reply.updates.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._reply.events(self._first)) as events:
            async for event in events:
                line = f"data: {json.dumps(event)}\n\n"
                await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def until_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """What `work` gives; it is cancelled, and ClientGone raised, if the client closes its connection before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for part in (task, gone):
            part.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

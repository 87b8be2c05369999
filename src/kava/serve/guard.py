"""What every request passes before a route sees it: host, key, size and time; and what is counted and logged of it."""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kava.serve.api_error import ApiError, ClientGone
from kava.serve.log import log
from kava.serve.service import Service

PUBLIC = frozenset({"/", "/health", "/ready"})  # need no key
KNOWN = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/lens", "/metrics", "/openapi.json", *PUBLIC)
PRIVATE = ("question", "answer")  # in the log only if wanted
MOST_DISCARDED = 32 * 2**20  # bytes of a body that is too large


class Guard:
    """ASGI middleware around the app. `hosts`: names under which the server may be called, besides addresses and
    localhost; a page of another origin that rebinds its name to this machine calls it by its own."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        api_key: str | None,
        hosts: Collection[str] = (),
        log_prompts: bool = False,
    ):
        self._app, self._service, self._log_prompts = app, service, log_prompts
        self._key = None if api_key is None else _digest(api_key)
        self._hosts = {"localhost", *(name.lower() for name in hosts)}
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.monotonic(), _Sent(send)
        scope["kava"] = notes = {}
        sent.request_id = secrets.token_hex(8)
        self.active += 1
        try:
            await self._answer(scope, receive, sent)
        except ApiError as error:
            await error.response()(scope, receive, sent)
        except ClientGone:
            notes["gone"] = True
        finally:
            self.active -= 1
            self._record(scope, sent, time.monotonic() - began, notes)

    async def _answer(self, scope: Scope, receive: Receive, sent: "_Sent") -> None:
        headers, limits = Headers(scope=scope), self._service.limits
        self._check(scope, headers)
        body = b""
        if scope["method"] == "POST":
            self._check_post(headers)
            try:
                body = await asyncio.wait_for(self._body(receive), limits.body_timeout)
            except asyncio.TimeoutError as late:
                problem = f"the body did not arrive within {limits.body_timeout:g} seconds"
                raise ApiError(408, problem, headers={"Connection": "close"}) from late
        try:
            await asyncio.wait_for(self._app(scope, _again(body, receive), sent), limits.request_timeout)
        except asyncio.TimeoutError as late:
            if sent.status is None:
                problem = f"there was no answer within {limits.request_timeout:g} seconds; ask for a shorter one"
                raise ApiError(504, problem) from late
            scope["kava"]["timeout"] = True  # the stream breaks off

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts and not _is_address(host):
            raise ApiError(421, f"this server is not called {host[:100]!r}; --allowed_hosts names what it is called")
        if self._key is None or scope["path"] in PUBLIC:
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._key):
            raise ApiError(
                401, "wrong or no key; send Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )

    def _check_post(self, headers: Headers) -> None:
        if self._service.draining:
            raise ApiError(503, "the server is shutting down", headers={"Connection": "close", "Retry-After": "10"})
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send the body as JSON: Content-Type: application/json")
        length = headers.get("content-length", "0")
        waits = "expect" in headers  # for leave to send its body
        most = self._service.limits.max_body_bytes if waits else MOST_DISCARDED
        if length.isdigit() and int(length[:20]) > most:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        most = self._service.limits.max_body_bytes
        return ApiError(413, f"the body has more than {most} bytes", headers={"Connection": "close"})

    async def _body(self, receive: Receive) -> bytes:
        """The request's body. One that is too large is read to its end and thrown away, since a client that is still
        sending sees a closed connection instead of the answer."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self._service.limits.max_body_bytes:
                parts.append(part)
            elif not more or size > MOST_DISCARDED:
                raise self._too_large()
        return b"".join(parts)

    def _record(self, scope: Scope, sent: "_Sent", seconds: float, notes: dict[str, Any]) -> None:
        path = scope["path"] if scope["path"] in KNOWN else "other"
        status = 499 if notes.get("gone") else sent.status or 500
        self._service.metrics.count("kava_requests_total", path=path, status=status)
        if path.startswith("/v1/"):
            self._service.metrics.observe("kava_request_seconds", seconds)
        kept = {name: value for name, value in notes.items() if self._log_prompts or name not in PRIVATE}
        facts = {"id": sent.request_id, "method": scope["method"], "path": scope["path"][:200], "status": status}
        log("request", **facts, seconds=round(seconds, 4), **kept)


class _Sent:
    """`send` that keeps the status, and adds the request's number."""

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None
        self.request_id = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)


def _again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives the body, which was read already, and then what comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return left.pop() if left else await receive()

    return receive_again


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

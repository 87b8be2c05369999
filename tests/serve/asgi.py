"""The server's application called as an HTTP server calls it, by clients that leave or stay."""

from __future__ import annotations

import asyncio

from kava.serve.app import create_app
from kava.serve.service import Service

CHAT = "/v1/chat/completions"


async def call(app, body: bytes, receive_more, path: str = CHAT) -> list:
    """The messages that the app sends to a client whose further behaviour is `receive_more`."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
             "headers": headers, "server": ("localhost", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
             "asgi": {"version": "3.0", "spec_version": "2.3"}}  # fmt: skip
    first, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        return first.pop() if body and first else await receive_more()

    async def send(message):
        sent.append(message)
        await asyncio.sleep(0)

    await app(scope, receive, send)
    return sent


async def leaves():
    return {"type": "http.disconnect"}


async def stays():
    await asyncio.Event().wait()


def run_app(service: Service, work):
    """`work(app)` while the service's engine works."""

    async def all_of_it():
        service.start()
        try:
            return await work(create_app(service))
        finally:
            service.stop()

    return asyncio.run(all_of_it())

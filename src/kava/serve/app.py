"""The web application: routers, and what surrounds them. A page or an endpoint is a router, added in `ROUTERS` alone."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

import kava
from kava.serve.api_error import ApiError, ClientGone
from kava.serve.completions import completions_router
from kava.serve.guard import Guard
from kava.serve.lens import lens_router
from kava.serve.playground import playground_router
from kava.serve.service import Service
from kava.serve.status import status_router

ROUTERS: tuple[Callable[[Service], APIRouter], ...] = (
    completions_router,
    lens_router,
    playground_router,
    status_router,
)


def create_app(
    service: Service, api_key: str | None = None, hosts: Collection[str] = (), log_prompts: bool = False
) -> Guard:
    """The application that answers with `service`, whose engine works while it runs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="kava", version=kava.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    for router in ROUTERS:
        app.include_router(router(service))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(500, _bug)
    return Guard(app, service, api_key, hosts, log_prompts)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _client_gone(request: Request, _: Exception) -> Response:
    request.scope["kava"]["gone"] = True
    return Response(status_code=499)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return ApiError(error.status_code, str(error.detail), headers=headers).response()


async def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body, by its field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', 'it is empty')}").response()
    field = ".".join(
        str(part) for part in first["loc"][1:] if not str(part).startswith(("constrained-", "list[", "function-"))
    )
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {field[:100]!r}", field[:100]).response()
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{field[:100] or 'the body'}: {message}", field[:100] or None).response()


async def _bug(_: Request, error: Exception) -> Response:
    return ApiError(500, "an error of the server; its log says more").response()

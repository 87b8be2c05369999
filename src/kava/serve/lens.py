"""POST /lens: what the latents of one question hold, as `kava lens` writes it; the playground draws it."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from kava.serve.completions import until_gone
from kava.serve.schema import LensRequest
from kava.serve.service import Service


def lens_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/lens")
    async def lens(body: LensRequest, request: Request) -> Response:
        request.scope["kava"]["question"] = [body.question]
        return JSONResponse(await until_gone(request.receive, service.lens(body)))

    return router

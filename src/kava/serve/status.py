"""/health, /ready and /metrics."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from kava.serve.service import ENGINE_DIED, Service


def status_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """Whether the process can still answer: 503 means it has to be started again."""
        return _status(ENGINE_DIED if not service.alive else None)

    @router.get("/ready")
    async def ready() -> Response:
        """Whether new questions are taken."""
        return _status("shutting down" if service.draining else ENGINE_DIED if not service.alive else None)

    @router.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def _status(problem: str | None) -> Response:
    return JSONResponse({"status": problem or "ok"}, 200 if problem is None else 503)

"""GET /: the playground, one page with its style and script in it. The policy lets nothing else run or load."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from kava.lens.page import asset as lens_asset
from kava.lens.page import policy_hash
from kava.serve.service import Service


def playground_router(_: Service) -> APIRouter:
    router = APIRouter()
    page, policy = playground()
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        """The page says nothing about the student: it asks /v1/models, with a key where one is wanted."""
        return HTMLResponse(page, headers=headers)

    return router


def playground() -> tuple[str, str]:
    """The page, and its Content-Security-Policy."""
    style = lens_asset("lens.css") + _asset("playground.css")
    script = lens_asset("lens.js") + _asset("playground.js")
    page = _asset("playground.html").replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        f"default-src 'none'; style-src {policy_hash(style)}; script-src {policy_hash(script)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _asset(name: str) -> str:
    return (files("kava.serve") / name).read_text(encoding="utf-8")

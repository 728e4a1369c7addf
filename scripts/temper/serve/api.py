"""The application: TGI 3.3.7's routes, its document, the key, and what becomes of errors."""

from __future__ import annotations

import hmac
import json

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from temper.serve import access, openapi
from temper.serve.answers import Server as Server
from temper.serve.answers import server_of
from temper.serve.faults import Fault, Rejection
from temper.serve.routes import ROUTES


def create_app(server: Server) -> FastAPI:
    """Return the application for a loaded, warm engine."""
    # FastAPI can export what it sees when an environment variable says so; prompts are not for that.
    telemetry: TelemetryConfig = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, telemetry=telemetry)
    app.state.server = server
    for route in ROUTES:
        methods = ["POST"] if route.body else ["GET", "HEAD"]
        key = [Depends(require_key)] if route.keyed else []
        app.add_api_route(route.path, route.endpoint, methods=methods, dependencies=key)
    _describe(app, bool(server.api_key))
    app.add_exception_handler(Fault, _fault)  # type: ignore[arg-type]
    app.add_exception_handler(Rejection, _rejection)  # type: ignore[arg-type]
    # Unknown paths, wrong methods and wrong keys have empty bodies.
    for status in (401, 404, 405):
        app.add_exception_handler(status, _empty)  # type: ignore[arg-type]
    if server.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["content-type", "authorization"],
        )
    app.add_middleware(access.AccessLog)
    return app


def _describe(app: FastAPI, key: bool) -> None:
    """Register the document and the page that lists it, both made once."""
    found = openapi.document(ROUTES, key)
    text, page = json.dumps(found), openapi.page(found)

    async def document() -> Response:
        return Response(text, media_type="application/json")

    async def listed() -> Response:
        return Response(page, media_type="text/html", headers=openapi.PAGE_HEADERS)

    async def to_list() -> Response:
        return RedirectResponse("/docs/", 303)

    for path, endpoint in (("/api-doc/openapi.json", document), ("/docs/", listed), ("/docs", to_list)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"])


async def _fault(_: Request, fault: Fault) -> Response:
    return JSONResponse(fault.body(), fault.status)


async def _rejection(_: Request, rejection: Rejection) -> Response:
    # The rest of a body that did not come in time is not waited for.
    headers = {"connection": "close"} if rejection.status == 408 else None
    return Response(rejection.text, rejection.status, headers, media_type="text/plain")


async def _empty(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 405:  # several routes may have this path, and Starlette names the methods of the first
        same = [route for route in request.app.routes if getattr(route, "path", "") == request.scope["path"]]
        headers["Allow"] = ", ".join(sorted({method for route in same for method in route.methods}))
    return Response(status_code=error.status_code, headers=headers)


async def require_key(request: Request) -> None:
    """Refuse a request without the key (401); TGI compares the whole header without regard to case."""
    key = server_of(request).api_key
    given = request.headers.get("authorization", "")
    if key and not hmac.compare_digest(given.lower().encode(), f"Bearer {key}".lower().encode()):
        raise HTTPException(401)

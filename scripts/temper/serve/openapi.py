"""The OpenAPI document of the routes, and a page that lists them, which needs nothing from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from temper.serve import replies, shapes
from temper.serve.routes import Route

REFERENCE = "#/components/schemas/{model}"
REJECTED = {
    400: "The body is no JSON",
    408: "The body does not arrive",
    413: "The body is too long",
    415: "The body is not called JSON",
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}td{{padding:.3em 1em .3em 0;vertical-align:top}}</style>
<h1>{title}</h1><p>Fields, types and errors: <a href="../api-doc/openapi.json">openapi.json</a></p>
<table>{rows}</table></html>
"""
PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


def document(routes: Iterable[Route], key: bool) -> dict[str, Any]:
    """Return the document; with `key` it says which routes want one."""
    routes = tuple(routes)
    types = {repr(kind): kind for route in routes for kind in (route.body, route.reply, route.event) if kind}
    adapters = [(name, "validation", TypeAdapter(kind)) for name, kind in types.items()]
    adapters.append(("error", "validation", TypeAdapter(shapes.ErrorResponse)))
    found, shared = TypeAdapter.json_schemas(adapters, ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas = {name: schema for (name, _), schema in found.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, schemas, key)
        paths.setdefault(route.path, {})["post" if route.body else "get"] = operation
    components: dict[str, Any] = {"schemas": shared.get("$defs", {})}
    if key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    title = f"The HTTP API of Text Generation Inference {replies.API_VERSION}, served by Temper"
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": replies.API_VERSION},
        "paths": paths,
        "components": components,
    }


def _operation(route: Route, schemas: dict[str, Any], key: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": (route.endpoint.__doc__ or "").strip(),
        "operationId": ("post" if route.body else "get") + re.sub(r"\W", "_", route.path),
        "responses": _responses(route, schemas, key),
    }
    if route.body:
        content = {"application/json": {"schema": schemas[repr(route.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    if key and route.keyed:
        operation["security"] = [{"key": []}]
    return operation


def _responses(route: Route, schemas: dict[str, Any], key: bool) -> dict[str, Any]:
    text, fault = {"text/plain": {"schema": {"type": "string"}}}, {"application/json": {"schema": schemas["error"]}}
    found = {"application/json": {"schema": schemas[repr(route.reply)]}} if route.reply else {}
    if route.event:
        found["text/event-stream"] = {"schema": _event(schemas[repr(route.event)])}
    answers: dict[str, Any] = {"200": {"description": "The answer", "content": text if route.reply is str else found}}
    if route.body:
        answers |= {str(status): {"description": why, "content": text} for status, why in REJECTED.items()}
        answers["422"] = {"description": "The request cannot be used", "content": {**fault, **text}}
    if route.generates:
        answers["424"] = {"description": "The model failed", "content": fault}
        answers["429"] = {"description": "Too many requests run", "content": fault}
    if route.endpoint.__name__ in ("root", "health"):
        answers["503"] = {"description": "The model does not work", "content": fault}
    if route.endpoint.__name__ == "root":
        answers["307"] = {"description": "The page for a browser"}
    if key and route.keyed:
        answers["401"] = {"description": "The key is missing or wrong"}
    return {**answers, "500": {"description": "This server failed", "content": fault}}


def _event(piece: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one event, whose data is JSON, or the mark after the last."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": piece}
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]}}}


def page(found: dict[str, Any]) -> str:
    """Return the operations of a document as a page."""
    rows = [
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code><td>{html.escape(operation['summary'])}"
        for path, operations in found["paths"].items()
        for method, operation in operations.items()
    ]
    return PAGE.format(title=html.escape(found["info"]["title"]), rows="".join(rows))

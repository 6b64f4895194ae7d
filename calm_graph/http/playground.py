"""The playground at /: one static page that asks this server like any other client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from calm_graph.http.errors import ApiError

FOLDER = Path(__file__).with_name("page")
MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# What came from elsewhere, or was written into the page, neither runs nor is asked for; a key that somebody types in
# can only go to this server.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


def playground_routes() -> APIRouter:
    """Return the routes of the page and of what belongs to it."""
    router = APIRouter(include_in_schema=False)
    files = {name: _read(name) for name in MEDIA_TYPES}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def show_page(request: Request) -> Response:
        """Show the playground."""
        return _answer(files["index.html"], request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def show_file(name: str, request: Request) -> Response:
        """Give a file of the playground."""
        if name not in files:
            raise ApiError(404, f"the page has no file {name[:100]!r}", code="not_found")
        return _answer(files[name], request)

    return router


def _read(name: str) -> _File:
    content = (FOLDER / name).read_bytes()
    headers = {
        "Content-Type": MEDIA_TYPES[name],
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Files of two versions must not meet in one page: browsers ask each time, and mostly hear that nothing changed.
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return _File(content, headers)


def _answer(file: _File, request: Request) -> Response:
    if file.headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={name: file.headers[name] for name in ("ETag", "Cache-Control")})
    return Response(file.content, headers=file.headers)

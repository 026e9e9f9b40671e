"""The page of `dgpo report --watch` and what it asks for, over HTTP; see watch.py. It only reads, and only runs."""

from __future__ import annotations

from fastapi import FastAPI, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dgpo_cli.core.records import to_json
from dgpo_cli.errors import DgpoError
from dgpo_cli.viewing.report_page import render_watch
from dgpo_cli.viewing.watch import Watch

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def watch_app(watch: Watch) -> FastAPI:
    """It answers under the names of this machine only: a page from elsewhere cannot give itself one of them."""
    page, policy = render_watch()
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    def show() -> Response:
        allowed = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
        return Response(page, headers=_HEADERS | allowed, media_type="text/html")

    def state() -> Response:
        return _json(watch.state())

    def run(number: int) -> Response:
        return _json(watch.run(number))

    def episode(number: int, key: str) -> Response:
        try:
            return _json(watch.episode(number, key))
        except DgpoError as error:
            return _json({"problem": f"Its text cannot be shown: {error.message}."})

    app.add_api_route("/", show)
    app.add_api_route("/state", state)
    app.add_api_route("/runs/{number}", run)
    app.add_api_route("/runs/{number}/episode", episode)
    return app


def _json(value: object) -> Response:
    gone = {"detail": "it is not there any more"}
    return Response(
        to_json(gone if value is None else value),
        404 if value is None else 200,
        headers=_HEADERS,
        media_type="application/json",
    )

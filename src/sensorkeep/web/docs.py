"""Swagger UI and ReDoc without the internet: the pages, and the assets that the package fastapi-offline carries."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from sensorkeep.errors import NotFound

ASSETS_PATH = "/docs/assets"

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "redoc.standalone.js": "text/javascript; charset=utf-8",
    "favicon.png": "image/png",
}
_REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""The one address that ReDoc loads by itself; it leaves the image out where it does not load."""
_NO_IMAGE = b"data:,"
_SWAGGER_PARAMETERS = {
    "validatorUrl": None,  # By default the address of the description is sent to validator.swagger.io.
    "persistAuthorization": False,
    "displayRequestDuration": True,
    "docExpansion": "none",
}
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def install_docs(app: FastAPI) -> None:
    """Serve the pages at /docs and /redoc, and under /api/v1. Make `app` with `docs_url=None, redoc_url=None`."""

    async def swagger(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{ASSETS_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS_PATH}/favicon.png",
            swagger_ui_parameters=_SWAGGER_PARAMETERS,
        )
        return _page(bytes(page.body))

    async def redoc(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        page = get_redoc_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - ReDoc",
            redoc_js_url=f"{root}{ASSETS_PATH}/redoc.standalone.js",
            redoc_favicon_url=f"{root}{ASSETS_PATH}/favicon.png",
            with_google_fonts=False,
        )
        return _page(bytes(page.body))

    async def asset(name: str) -> Response:
        return Response(
            await run_in_threadpool(_read_asset, name),
            headers={"content-type": _ASSETS[name], "cache-control": "public, max-age=86400"},
        )

    for prefix in ("", "/api/v1"):
        app.add_api_route(f"{prefix}/docs", swagger, include_in_schema=False, response_class=Response)
        app.add_api_route(f"{prefix}/redoc", redoc, include_in_schema=False, response_class=Response)
    app.add_api_route("/", _to_docs, include_in_schema=False, response_class=Response)
    app.add_api_route(f"{ASSETS_PATH}/{{name}}", asset, include_in_schema=False, response_class=Response)


async def _to_docs(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")


def _read_asset(name: str) -> bytes:
    """The file of that name. Raises NotFound."""
    if name not in _ASSETS:
        raise NotFound("There is no such asset.")
    content = (files("fastapi_offline") / "static" / name).read_bytes()
    return content.replace(_REDOC_LOGO, _NO_IMAGE) if name == "redoc.standalone.js" else content


def _page(html: bytes) -> Response:
    return Response(html, media_type="text/html", headers={"content-security-policy": _policy(html.decode())})


def _policy(html: str) -> str:
    """What the page may load: nothing from elsewhere, and of inline scripts only those it has."""
    scripts = "".join(f" 'sha256-{_digest(script)}'" for script in _INLINE_SCRIPT.findall(html))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self'{scripts}",
            "style-src 'self' 'unsafe-inline'",  # Both pages make their styles at run time.
            "img-src 'self' data:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "worker-src blob:",  # ReDoc's search.
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

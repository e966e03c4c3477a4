"""A trained detector behind HTTP: ``create_app(predictor, settings)`` is an ASGI application, run by ``detrs serve``.

The packages of the extra ``serve`` are imported when the application is created.
"""

from typing import TYPE_CHECKING

from detrs.errors import UserError
from detrs.serving.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from detrs.predictor import Predictor

__all__ = ["ServerSettings", "create_app"]

PACKAGES = ("fastapi", "python_multipart", "prometheus_client", "uvicorn")
"""Packages of the extra ``serve``."""


def create_app(predictor: "Predictor", settings: ServerSettings | None = None) -> "FastAPI":
    """An ASGI application that detects objects in images sent by HTTP.

    ::

        app = create_app(detrs.load("runs/first"), ServerSettings(token="..."))
        uvicorn.run(app)

    The model runs in one thread of its own, which starts with the first request and ends with the application
    (ASGI lifespan).

    Args:
        predictor: the detector; used by no one else while the application runs.
        settings: limits, queue and token; by default those of ``ServerSettings()``.

    Raises:
        UserError: a package of the extra ``serve`` is missing.
    """
    check_packages()
    from detrs.serving.app import build_app

    return build_app(predictor, settings or ServerSettings())


def check_packages() -> None:
    """Check that the packages of the extra ``serve`` are installed.

    Raises:
        UserError: with the command that installs them.
    """
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"Serving requires {', '.join(missing)}: pip install 'detrs[serve]'")

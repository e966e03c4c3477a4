"""The application: routes, and how they are described in OpenAPI."""

import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from detrs.errors import did_you_mean, printable
from detrs.predictor import Predictor
from detrs.serving import metrics, reference
from detrs.serving.description import REQUEST_BODY, RESPONSES
from detrs.serving.explaining import add_explain, unexplainable
from detrs.serving.gate import Gate
from detrs.serving.images import FORMATS
from detrs.serving.metrics import Metrics
from detrs.serving.page import PageSettings, add_page
from detrs.serving.parameters import Parameters, labels, selected
from detrs.serving.problems import RequestProblem, problem_response
from detrs.serving.service import Service
from detrs.serving.settings import ServerSettings

OPEN = ("/", "/docs", "/openapi.json", "/health", "/health/live")
"""Routes without token: nothing there depends on images."""
OPEN_FOLDERS = ("/page/", "/docs/")


def build_app(predictor: Predictor, settings: ServerSettings) -> FastAPI:
    """The application of a predictor: ``detrs.serving.create_app``."""
    version = importlib.metadata.version("detrs")
    experiment = predictor.detector.experiment
    model = experiment.name or type(experiment.model).__name__.removesuffix("Config")
    measured = Metrics(model, version)
    service = Service(predictor, settings, measured.batch_finished)
    measured.queue(lambda: service.worker.waiting, lambda: service.pending)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title=f"detrs: {model}", version=version, docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=False,  # to an address with the name in the header Host
        description="Detects objects in images.",
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(
        Gate,
        token=settings.token,
        is_open=lambda path: path in OPEN or path.startswith(OPEN_FOLDERS),
        hosts=settings.hosts,
        finished=measured.request_finished,
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RequestProblem, _problem)

    @app.post("/predict", openapi_extra={"requestBody": REQUEST_BODY}, responses=RESPONSES, tags=["detection"])
    async def predict(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
        """Detect objects in one or several images."""
        wanted = labels(parameters.classes, predictor.detector.classes)
        threshold = service.threshold if parameters.threshold is None else parameters.threshold
        found = await service.detect(request)
        images = [selected(each, threshold, wanted, parameters.max_detections).to_json() for each in found]
        return JSONResponse({"model": model, "threshold": threshold, "images": images})

    add_explain(app, service)
    add_page(
        app,
        PageSettings(
            checkpoint=model,
            detector=type(experiment.model).__name__.removesuffix("Config"),
            classes=predictor.detector.classes,
            threshold=service.threshold,
            max_bytes=settings.max_body_bytes,
            formats=FORMATS,
            needs_token=settings.token is not None,
            unexplainable=unexplainable(predictor.detector.module),
        ),
    )

    @app.get("/health", tags=["operation"])
    def health() -> Response:
        """Whether the server is ready: 200, or 503 if it is full, stopping or broken. What it serves."""
        return JSONResponse(
            {
                "ready": service.is_ready,
                "model": model,
                "version": version,
                "device": str(predictor.device),
                "precision": predictor.precision,
                "threshold": service.threshold,
                "nms": predictor.nms,
                "classes": list(predictor.detector.classes.names),
                "max_images": settings.max_images,
                "max_body_bytes": settings.max_body_bytes,
                "max_pixels": settings.max_pixels,
                "formats": list(FORMATS),
                "needs_token": settings.token is not None,
            },
            200 if service.is_ready else 503,
        )

    @app.get("/health/live", tags=["operation"])
    async def live() -> Response:
        """200 as long as the process answers."""
        return JSONResponse({"live": True})

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(measured.text(), media_type=metrics.CONTENT_TYPE)

    style = reference.style()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference.reference_page(app.openapi()))

    @app.get(reference.STYLE_PATH, include_in_schema=False)
    async def docs_style() -> Response:
        return Response(style, media_type="text/css")

    return app


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestProblem)
    return problem_response(error.status, error.message, error.retry_after)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the router."""
    assert isinstance(error, HTTPException)
    messages = {
        404: "There is nothing at this address. See /docs.",
        405: f"The method {printable(request.method[:20])} is not allowed here. See /docs.",
    }
    response = problem_response(error.status_code, messages.get(error.status_code, f"{error.detail}."))
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    """Query parameters that are unknown or out of range: the first of them."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    name = printable(str(first["loc"][-1])[:80])
    if first["type"] == "extra_forbidden":
        known = list(Parameters.model_fields)
        message = f"Unknown parameter '{name}'.{did_you_mean(name, known)} Expected {', '.join(known)}."
    else:
        message = f"The parameter {name} is '{printable(str(first['input'])[:80])}': {first['msg']}."
    return problem_response(422, message)

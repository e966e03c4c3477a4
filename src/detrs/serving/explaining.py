"""``POST /explain``: the page of ``detrs explain`` for one image."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from detrs.data.images import decode_image
from detrs.errors import UserError
from detrs.explanation.builders import TRACERS
from detrs.explanation.explain import explain
from detrs.models.detector import Model
from detrs.predictor import Predictor
from detrs.serving.description import ERRORS
from detrs.serving.problems import RequestProblem
from detrs.serving.service import Service
from detrs.serving.uploads import Upload
from detrs.visualization.explorer import explorer_page


class Parameters(BaseModel):
    """Which detections are explained."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        None, ge=0, le=1, description="Minimum score of a detection. Default: that of the server, see /health."
    )


def add_explain(app: FastAPI, service: Service) -> None:
    """Add ``POST /explain`` to an application.

    The page is built in the thread of the model, since the calls of the model's layers are recorded; it counts as one
    image of the queue.
    """

    errors: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in ERRORS.items()}
    extra = {"requestBody": REQUEST_BODY}

    @app.post("/explain", response_class=HTMLResponse, openapi_extra=extra, responses=errors, tags=["detection"])
    async def explain_image(request: Request, parameters: Annotated[Parameters, Query()]) -> HTMLResponse:
        """What the model computed for one image, as an HTML page to explore, without external files."""
        reason = unexplainable(service.predictor.detector.module)
        if reason is not None:
            raise RequestProblem(422, reason)
        threshold = service.threshold if parameters.threshold is None else parameters.threshold

        def page(upload: Upload) -> str:
            return explanation_page(service.predictor, upload, threshold)

        return HTMLResponse(await service.call(request, page))


def unexplainable(model: Model) -> str | None:
    """Why the detections of a model cannot be explained, as a sentence for the user; ``None``: they can."""
    if type(model) in TRACERS:
        return None
    return (
        "Explanations need the layers of the model, which an exported file does not have: start detrs serve with the "
        "checkpoint (best.safetensors) to explain detections."
    )


def explanation_page(predictor: Predictor, upload: Upload, threshold: float) -> str:
    """The explorer of an image as HTML.

    Args:
        predictor: of a model that can be explained; not used by another thread meanwhile.
        upload: the image; its name is only shown.
        threshold: smallest score of a detection.

    Raises:
        RequestProblem: the image cannot be decoded.
        UserError: the model does not accept it, or memory is missing.
    """
    try:
        image = decode_image(upload.content)
    except UserError as error:
        raise RequestProblem(400, f"The image: {error}") from None
    (explanation,) = explain(predictor, image, threshold=threshold)
    return explorer_page({**explanation.to_json(), "source": upload.name})


REQUEST_BODY = {
    "required": True,
    "description": "One image, in a form (multipart/form-data), as the body, or in base64 in JSON; as in /predict.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "byte"}}}
        },
    },
}

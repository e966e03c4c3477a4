"""The description of ``/predict`` in OpenAPI: bodies, answers and errors."""

from typing import Any

from detrs.serving.images import FORMATS

ERRORS = {
    400: "The body or an image is damaged.",
    401: "The token is missing or wrong.",
    403: "The request is from a page of another site.",
    408: "The body did not arrive in time.",
    413: "The body, the number of images or an image is too large.",
    415: "The content type or the format of an image is not supported.",
    422: "A parameter is unknown or out of range, or the model does not accept the image.",
    429: "The client has too many requests in progress; see Retry-After.",
    503: "The queue is full, or the answer took too long; see Retry-After.",
}
"""Status -> reason. Their body is ``{"error": "one sentence"}``."""

_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte"}

REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": f"Images as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"files": {"type": "array", "items": _FILE}}},
        },
        "image/*": {"schema": _FILE},
        "application/json": {
            "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _BASE64}}},
            "example": {"images": ["/9j/4AAQSkZJRgABAQ..."]},
        },
    },
}

_DETECTION = {
    "type": "object",
    "properties": {
        "box_xyxy": {
            "type": "array",
            "items": {"type": "number"},
            "description": "[x1, y1, x2, y2] in pixels of the image, after EXIF orientation.",
        },
        "score": {"type": "number"},
        "name": {"type": "string", "description": "Name of the class."},
        "category_id": {"type": "integer", "description": "Id of the class in the dataset of training."},
    },
}
_IMAGE = {
    "type": "object",
    "properties": {
        "source": {"type": ["string", "null"], "description": "Name of the file, if one was sent."},
        "image_size": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "[height, width] in pixels.",
        },
        "detections": {"type": "array", "items": _DETECTION, "description": "Best first."},
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "threshold": {"type": "number"},
        "images": {"type": "array", "items": _IMAGE, "description": "In the order of the request."},
    },
}
_EXAMPLE = {
    "model": "deformable-detr-small",
    "threshold": 0.4,
    "images": [
        {
            "source": "cells.jpg",
            "image_size": [480, 640],
            "detections": [
                {"box_xyxy": [22.5, 31.25, 101.0, 118.75], "score": 0.913, "name": "RBC", "category_id": 1},
            ],
        }
    ],
}
_ERROR = {"type": "object", "properties": {"error": {"type": "string", "description": "One sentence."}}}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The detections of each image, best first.",
        "content": {"application/json": {"schema": _ANSWER, "example": _EXAMPLE}},
    },
    **{
        status: {"description": reason, "content": {"application/json": {"schema": _ERROR}}}
        for status, reason in ERRORS.items()
    },
}

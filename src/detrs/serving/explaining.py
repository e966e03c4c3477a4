"""The answer to ``POST /explain``: the page of ``detrs explain`` for one image."""

from detrs.errors import UserError
from detrs.explanation.builders import TRACERS
from detrs.explanation.explain import explain
from detrs.models.detector import Model
from detrs.predictor import Predictor
from detrs.visualization.explorer import explorer_page


def unexplainable(model: Model) -> str | None:
    """Why the detections of a model cannot be explained, as a sentence for the user; ``None``: they can.

    Exported files contain a graph of operators, not the layers whose attention is recorded.
    """
    if type(model) in TRACERS:
        return None
    return (
        "Explanations need the layers of the model, which an exported file does not have: start detrs serve with the "
        "checkpoint (best.safetensors) to explain detections."
    )


def explanation_page(predictor: Predictor, image: bytes, name: str | None, threshold: float | None = None) -> str:
    """The explorer of an image as HTML, without server and external files.

    It records the calls of the model's layers, so it must run in the thread that runs the model.

    Args:
        predictor: of the server.
        image: the content of an image file, within the limits of the server.
        name: of the file, for the title; never opened.
        threshold: smallest score of a detection; by default as in prediction.

    Raises:
        UserError: the model cannot be explained, the image cannot be decoded, or the threshold is out of range.
    """
    reason = unexplainable(predictor.detector.module)
    if reason is not None:
        raise UserError(reason)
    (explanation,) = explain(predictor, image, threshold=threshold)
    return explorer_page({**explanation.to_json(), "source": name})

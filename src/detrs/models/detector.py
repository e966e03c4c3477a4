"""The detector pipeline: images -> backbone -> neck -> encoder -> queries -> decoder (+ heads) -> boxes."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.classification import Classification, class_logits
from detrs.config.criterion import CriterionConfig
from detrs.criterion.objective import Objective, SetObjective
from detrs.layers.decoder import Decoder
from detrs.layers.encoder import Encoder
from detrs.postprocess import best_boxes, best_of_layer
from detrs.structures import Boxes, LayerBoxes, Predictions


class Model(nn.Module, ABC):
    """The interface between a model and the rest of the library: an objective to train and a function to detect.

    Training, evaluation, prediction and export use nothing else of a model; the report of an evaluation also
    ``detect_layers``.
    """

    @abstractmethod
    def objective(self, config: CriterionConfig) -> Objective:
        """The module around this model that is trained; padding as in ``detect``."""

    @abstractmethod
    def detect(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> Boxes:
        """The best detections of each image, as tensors of fixed size; exportable.

        Args:
            images: (B, 3, H, W), normalized, zero where padded.
            padding: (B, H, W), True where padded: right and bottom only.
            max_detections: largest number of detections per image.

        Raises:
            UserError: an image has other padding; only checked on the CPU.
        """

    def detect_layers(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> tuple[LayerBoxes, ...]:
        """The detections of each decoder layer; those of the last are ``detect``'s. Arguments as in ``detect``.

        Models without decoder layers and queries have one.
        """
        return (LayerBoxes(self.detect(images, padding, max_detections), None, None),)


class Detector(Model):
    """Detector with the standard pipeline of the family; other models implement ``Model`` directly.

    Args:
        backbone: images to a list of feature maps.
        neck: feature maps and padding to a ``Pyramid``.
        encoder: ``Pyramid`` to ``Pyramid``.
        queries: ``Pyramid`` to ``Queries`` and the encoder's proposals (or ``None``).
        decoder: ``Queries`` and ``Pyramid`` to one ``Prediction`` per layer and the final queries.
        classification: the meaning of the logits.
        objective: (detector, criterion settings) to the module that is trained.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: Encoder,
        queries: nn.Module,
        decoder: Decoder,
        classification: Classification,
        objective: Callable[["Detector", CriterionConfig], Objective] = SetObjective,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.classification = classification
        self.class_logits = class_logits(classification)
        self._objective = objective

    def forward(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> Predictions:
        features = self.backbone(images)
        pyramid = self.neck(features, padding)
        memory = self.encoder(pyramid)
        queries, proposals = self.queries(memory)
        return Predictions(self.decoder(queries, memory)[0], proposals)

    def objective(self, config: CriterionConfig) -> Objective:
        return self._objective(self, config)

    def detect(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> Boxes:
        return best_boxes(self(images, padding).last, self.class_logits, max_detections)

    def detect_layers(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> tuple[LayerBoxes, ...]:
        layers = self(images, padding).layers
        return tuple(best_of_layer(layer, self.class_logits, max_detections) for layer in layers)

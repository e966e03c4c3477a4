"""The family in one sentence: images -> backbone -> neck -> encoder -> queries -> decoder (+ heads) -> boxes."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.decoder import Decoder
from detrs.layers.encoder import Encoder
from detrs.structures import Predictions


class Detector(nn.Module):
    """Turns images into sets of boxes. A convenience for detectors that share the sentence, not a base class.

    Args:
        backbone: images to a list of feature maps.
        neck: feature maps and padding to a ``Pyramid``.
        encoder: ``Pyramid`` to ``Pyramid``.
        queries: ``Pyramid`` to ``Queries`` and the encoder's proposals (or ``None``).
        decoder: ``Queries`` and ``Pyramid`` to one ``Prediction`` per layer.
    """

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, encoder: Encoder, queries: nn.Module, decoder: Decoder
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder

    def forward(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> Predictions:
        features = self.backbone(images)
        pyramid = self.neck(features, padding)
        memory = self.encoder(pyramid)
        queries, proposals = self.queries(memory)
        return Predictions(self.decoder(queries, memory), proposals)

"""Small readable networks, for audits and experiments."""

from theodolite.models.alexnet import AlexNet
from theodolite.models.encoder_decoder import EncoderDecoder
from theodolite.models.mlp import MLP

__all__ = ["MLP", "AlexNet", "EncoderDecoder"]

"""Ranges of the settings that every detector has."""

from typing import Any

from detrs.errors import UserError

COUNTS = ("num_classes", "dim", "num_heads", "decoder_layers", "ffn_dim", "num_queries")


def check_ranges(config: Any, at_least_one: tuple[str, ...] = ()) -> None:
    """Refuse counts and probabilities out of range.

    Args:
        config: of a model, with the settings in ``COUNTS``, ``encoder_layers`` and ``dropout``.
        at_least_one: further counts, its own.

    Raises:
        UserError: with the setting's name.
    """
    for name, least in {"encoder_layers": 0, **dict.fromkeys((*COUNTS, *at_least_one), 1)}.items():
        if getattr(config, name) < least:
            raise UserError(f"model.{name} is {getattr(config, name)}, but must be {least} or above.")
    if not 0 <= config.dropout < 1:
        raise UserError(f"model.dropout is {config.dropout}, but must be in [0, 1).")


def check_heads(config: Any) -> None:
    """Refuse heads that do not share the width evenly.

    Raises:
        UserError: with both settings.
    """
    if config.dim % config.num_heads:
        raise UserError(f"model.num_heads is {config.num_heads}, but must divide model.dim ({config.dim}).")

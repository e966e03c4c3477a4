"""The attention operator inside models of other libraries.

``transformers``: :func:`detrs.integrations.transformers.accelerate`. ``mmcv`` and ``official``: the operator under the
signatures of mmcv and of the CUDA operator of the official repositories.
"""

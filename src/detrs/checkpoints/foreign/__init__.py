"""Weights of other projects: safe reading of their files, their names of tensors, and their settings.

``torch_file`` and ``pickle_inspection`` read files of PyTorch without executing code in them. ``renaming`` is the table
of names in both directions, and ``loading`` turns weights and settings into a trained detector. The other modules are
one layout each: ``transformers``, the official files of the authors, and torchvision.
"""

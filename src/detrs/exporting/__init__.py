"""Export: a trained detector as a file that runs without this library, checked against the checkpoint.

``export`` builds a program from the model, writes it beside the output, reads it back with ``open_detector`` and
compares both detectors; a file that disagrees is not written.
"""

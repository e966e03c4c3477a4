"""Accuracy and speed of detectors."""

"""Explanation of detections: what a detector computed on the way from an image to its boxes.

``explain.py`` is the entry; ``views.py`` has the data structures, which figures and pages draw.
"""

"""Frames of video files, webcams and network streams; annotated videos.

PyAV (``pip install 'detrs[stream]'``) is imported when a video is opened, so that everything else works without it.
"""

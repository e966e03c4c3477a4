"""Drawing: boxes on images, curves of training runs."""

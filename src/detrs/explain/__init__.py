"""Pictures that explain: boxes on images, curves of runs."""

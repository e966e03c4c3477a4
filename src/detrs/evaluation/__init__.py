"""How good and how fast a detector is."""

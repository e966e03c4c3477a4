"""How wrong a set of boxes is: matching and losses."""

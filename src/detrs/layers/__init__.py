"""Components of the detectors: neck, attention, encoder, queries, decoder and heads."""

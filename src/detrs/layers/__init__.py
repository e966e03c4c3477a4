"""The parts every detector is assembled from, in the order of the sentence."""

"""A model and its card: crops to probabilities."""

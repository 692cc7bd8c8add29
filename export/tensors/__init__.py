"""Weights on disk: reading and writing them."""

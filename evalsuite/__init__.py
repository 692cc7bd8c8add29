"""Artifacts and examples in; scores, a verdict and a report out."""

"""Training: from recipe and examples to an adapter, and the pretraining of the tiny base model."""

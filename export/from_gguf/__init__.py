"""A GGUF back into a model folder: weights, configuration, tokenizer, and the proof that both are one model."""

"""Adapter to merged model to GGUF, each step proven before it is taken for an artifact."""

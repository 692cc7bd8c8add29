"""What the rooms must agree on. Nothing here imports torch, transformers, onnxruntime or llama_cpp."""

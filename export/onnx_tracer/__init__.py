"""The process that traces a model into ONNX: Optimum needs an older transformers than everything else here."""

"""Import from and export to Hugging Face folders, sentence-transformers and ONNX, with parity checks."""

"""Texts to embeddings: the Embedder, packing of texts into sequences, windows over long texts, chunking."""

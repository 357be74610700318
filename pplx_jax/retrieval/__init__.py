"""Embedding files, indexes and search engines, BM25 and retrieval metrics."""

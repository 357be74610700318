"""Encoding files, indexes with exact search, retrieval metrics and the BM25 baseline."""

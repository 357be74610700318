"""Evaluation of models on retrieval sets."""

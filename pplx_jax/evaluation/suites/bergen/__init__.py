"""BERGEN: retrieval-augmented question answering (arXiv 2407.01102)."""

from pplx_jax.evaluation.suites.bergen.benchmark import NAMES, open_benchmark

__all__ = ["NAMES", "open_benchmark"]

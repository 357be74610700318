"""The paper's internal benchmarks on your own data: retrieval in pools of growing size (arXiv 2602.11151)."""

from pplx_jax.evaluation.suites.query_to_document.benchmark import NAMES, open_benchmark

__all__ = ["NAMES", "open_benchmark"]

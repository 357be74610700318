"""Retrieval benchmarks of the mteb package: MTEB(Multilingual, v2), MTEB(Code) and MIRACL."""

from pplx_jax.evaluation.suites.mteb.benchmark import NAMES, open_benchmark

__all__ = ["NAMES", "open_benchmark"]

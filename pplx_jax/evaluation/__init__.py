"""Scores models and BM25 on retrieval benchmarks.

scoring/     from an encoder and a retrieval set to scores and metrics
core/        the protocol of a benchmark, the runner, results folders, comparison, significance
suites/      the benchmark families that ship with this package, one file or folder each
registry.py  finds a benchmark: a shipped one, a BEIR folder, or one of the user's own package
evaluate.py  the verb `eval`
watch.py     `eval --watch`: scores the checkpoints of a stage as they appear
"""

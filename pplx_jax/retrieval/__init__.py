"""Embeddings of files, indexes of several engines, exact search, BM25 and retrieval metrics.

The verbs are `embed_file`, `build_index`, `update_index` and `search_index`, one file each.

embeddings/    what `embed` reads and writes
local/         an index in a folder: FAISS, NumPy, JAX
vespa/         an index in Vespa
postgres/      an index in PostgreSQL
searchable_index.py   what all these indexes have in common; open_index.py opens any of them
exact_search.py       similarities and the order of documents, ties included; the engines agree with it
metrics.py, bm25.py   trec_eval's metrics; the lexical baseline
"""

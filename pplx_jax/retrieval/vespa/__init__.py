"""Vespa as a distributed search engine: an application with packed signs and INT8 vectors, used over HTTP.

`index --engine vespa` calls `build`; `open_index` opens what it wrote. `search` has the options of Vespa that the verb
does not have. docs/vespa.md describes the set-up. No Vespa package is needed: all files and requests are text.
"""

from pplx_jax.retrieval.vespa.index import VespaIndex, build, search

__all__ = ["VespaIndex", "build", "search"]

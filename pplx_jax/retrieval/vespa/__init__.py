"""Vespa as the distributed engine: an application of packed signs and INT8 vectors, fed and queried over HTTP.

`index --engine vespa` calls `build`, `search --engine vespa` calls `search`; docs/vespa.md is the way from nothing to
hits. Nothing here needs a Vespa package: what is written and sent is text.
"""

from pplx_jax.retrieval.vespa.index import VespaIndex, build, search

__all__ = ["VespaIndex", "build", "search"]

"""The self-contained page of a run: inline style and SVG, no scripts, nothing from the network."""

from pplx_jax.reports.page import render_page

__all__ = ["render_page"]

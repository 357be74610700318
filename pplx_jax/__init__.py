"""Text-embedding models by diffusion pretraining and contrastive learning, in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pplx_jax.inference.embedder import Embedder as Embedder

__all__ = ["Embedder"]


def __getattr__(name: str):
    # On first use: `import pplx_jax` itself stays instant.
    if name == "Embedder":
        from pplx_jax.inference.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'pplx_jax' has no attribute {name!r}")

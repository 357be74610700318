"""Attention over packed rows."""

from pplx_jax.kernels.attention.reference import attention as attention

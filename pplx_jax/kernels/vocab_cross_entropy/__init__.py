"""Cross-entropy of a tied head over a large vocabulary, without [T, V] logits in memory.

`vocab_cross_entropy(hidden [T, D], embedding [V, D], targets [T], weights [T])` returns the scalar
sum of weights * cross-entropy, differentiable in `hidden`, `embedding` and `weights`, and the cross-entropy [T] of
each position in nats (0 where its weight is 0), for metrics and without a gradient. Both float32.
"""

from pplx_jax.kernels.vocab_cross_entropy.chunked import vocab_cross_entropy as vocab_cross_entropy

"""Duplicates in a batch: examples with the same query or the same document are not negatives of each other."""

import jax
import jax.numpy as jnp


def duplicate_groups(query_hash: jax.Array, document_hash: jax.Array) -> jax.Array:
    """Numbers the examples; those that share a query or a document get the same number.

    The relation is transitive: if a and b share a query, and b and c a document, then c's document answers the query of
      a,
    and all three form one group. Longer chains are rare within a batch.

    Args:
      query_hash: [N] int32; equal for equal queries.
      document_hash: [N] int32; equal for equal documents.

    Returns:
      [N] int32, the index of the first example of each example's group.
    """
    count = query_hash.shape[0]
    places = [jnp.unique(hashes, return_inverse=True, size=count)[1] for hashes in (query_hash, document_hash)]

    def spread(state):
        group, _ = state
        wider = group
        for place in places:
            wider = jax.ops.segment_min(wider, place, num_segments=count)[place]
        return wider, jnp.any(wider != group)

    start = (jnp.arange(count, dtype=jnp.int32), jnp.bool_(True))
    return jax.lax.while_loop(lambda state: state[1], spread, start)[0]


def group_sizes(group: jax.Array) -> jax.Array:
    """[N] int32, the number of examples in each example's group, itself included."""
    return jax.ops.segment_sum(jnp.ones_like(group), group, num_segments=group.shape[0])[group]


def group_of_documents(group: jax.Array, document_hash: jax.Array, other_hash: jax.Array) -> jax.Array:
    """Finds, for further documents such as hard negatives, the group that has a copy of the document.

    Args:
      group: [N], of `duplicate_groups`.
      document_hash: [N], of the examples.
      other_hash: [M], of the further documents.

    Returns:
      [M] int32; -1 if no example has the document.
    """
    order = jnp.argsort(document_hash)
    known = document_hash[order]
    place = jnp.searchsorted(known, other_hash).clip(max=known.shape[0] - 1)
    return jnp.where(known[place] == other_hash, group[order][place], -1)

"""An index in a folder, searched by FAISS, NumPy or JAX.

build            makes an index folder from embeddings
index_part       what `build` wrote, opened for searching
index            the parts together: what was built, then what `update` added and deleted
sharded_vectors  vectors of many files as one array
sign_search      candidates by the signs of the vectors (engine "faiss")
device_search    exact search on the devices of one process (engine "jax"); pod_search: of all processes
best_documents   documents by their best chunks
"""

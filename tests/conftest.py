"""Settings every test shares: JAX runs on the CPU unless the caller says otherwise."""

import os

# Before the first import of jax anywhere in the suite; an explicit setting of the caller wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What runs for milliseconds is not worth optimizing for seconds.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402

# Compiling takes seconds, so a deadline would only measure it; the same examples every time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("repeatable")

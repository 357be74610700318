"""Metrics that depend on the clock: two runs of the same steps differ in them alone."""

CLOCK = {
    "tokens_per_second",
    "data_wait_seconds",
    "data_wait_share",
    "checkpoint_seconds",
    "host_memory_bytes",
    "goodput",
    "restarts",
}

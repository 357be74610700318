"""Metrics that depend on the clock: only in these may two runs of the same steps differ."""

CLOCK = {
    "tokens_per_second",
    "data_wait_seconds",
    "data_wait_share",
    "checkpoint_seconds",
    "host_memory_bytes",
    "goodput",
    "restarts",
}

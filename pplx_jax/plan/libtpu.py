"""Environment variables with which libtpu compiles without TPUs. It reads them once, at the first use."""

# The TPU_ variables only prevent libtpu's queries to the network.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "",  # libtpu ends the process on a flag that it does not know, such as one for this machine's devices
}

#!/bin/bash
# The backbone experiment with all layers of SmolLM2 on one GPU. It stops after ten minutes; the same command continues.
#
#   bash benchmarks/experiment_on_gpu.sh SmolLM2-135M-Instruct.Q4_1.gguf experiments_full
set -e
model=$(realpath "$1") workdir=$(realpath -m "$2")
cd "$(dirname "$0")/.."
mkdir -p "$workdir"
export JAX_COMPILATION_CACHE_DIR=$workdir/compiled
[ -e "$workdir/model/model.json" ] || python -m pplx_jax import-hf "$model" "$workdir/model" --no_parity
timeout --signal=TERM --kill-after=60 "${SECONDS_AT_MOST:-600}" python -m pplx_jax experiment \
    --set=gin/experiments/backbone --gin_file=gin/experiments/full.gin --gin_param="INITIAL='$workdir/model'" \
    --workdir="$workdir" --seeds="${SEEDS:-0}" "${@:3}"

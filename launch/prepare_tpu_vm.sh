#!/bin/bash
# Readies one host of a TPU slice: the bucket at /gcs/BUCKET, and leave to pull images from REGISTRY.
#
#   bash prepare_tpu_vm.sh BUCKET REGISTRY        # REGISTRY such as us-west4-docker.pkg.dev
set -euo pipefail
bucket=$1 registry=$2

if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq --yes gcsfuse
fi
if ! mountpoint -q "/gcs/$bucket"; then
  sudo mkdir -p "/gcs/$bucket"
  sudo gcsfuse --implicit-dirs -o allow_other "$bucket" "/gcs/$bucket"
fi
sudo gcloud auth configure-docker "$registry" --quiet

#!/usr/bin/env bash
# All that is measured on a GPU, in ten minutes at most: that kernels are right, then how fast they are. Nothing is
# downloaded beyond what is installed: `pip install "headwise[gpu]" matplotlib` with a torch built for CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-docs/data}"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
timeout 560 python benchmarks/gpu.py --seconds 500 --json "$out/gpu.json"

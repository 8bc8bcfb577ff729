#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Without a GPU, GPUS is the number of CPU processes. Several machines:
# NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '3,5s/^# //p' "$0" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
shift 2
if [[ ! $GPUS =~ ^[1-9][0-9]*$ ]]; then
    echo "GPUS must be a number of processes, 1 or more, not '$GPUS'." >&2
    exit 2
fi
ROOT=$(cd "$(dirname "$0")/.." && pwd)

# share the cores among the processes, unless the user has decided
THREADS=$(($(getconf _NPROCESSORS_ONLN) / GPUS))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((THREADS > 0 ? THREADS : 1))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}

exec "${PYTHON:-python}" "$ROOT/tools/launch.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "$@"

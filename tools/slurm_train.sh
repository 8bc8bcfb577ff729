#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of
# tools/train.py]. Environment: GPUS (8), GPUS_PER_NODE (8, 0 for CPU
# processes), TASKS_PER_NODE, CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '3,5s/^# //p' "$0" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
shift 3
# the work dir may be left out: an option never stands in its place
WORK_DIR=()
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    WORK_DIR=(--work-dir "$1")
    shift
fi
ROOT=$(cd "$(dirname "$0")/.." && pwd)
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
if [ "$GPUS_PER_NODE" -gt 0 ]; then
    TASKS_PER_NODE=${TASKS_PER_NODE:-$GPUS_PER_NODE}
    GRES=(--gres="gpu:$GPUS_PER_NODE")
else
    TASKS_PER_NODE=${TASKS_PER_NODE:-$GPUS}
    GRES=()
fi
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}

# SRUN_ARGS holds several words on purpose
# shellcheck disable=SC2086
exec srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    ${GRES[@]+"${GRES[@]}"} \
    --ntasks="$GPUS" \
    --ntasks-per-node="$TASKS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$ROOT/tools/train.py" "$CONFIG" ${WORK_DIR[@]+"${WORK_DIR[@]}"} \
    --launcher slurm "$@"

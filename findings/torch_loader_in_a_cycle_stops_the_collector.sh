#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1 (Python 3.11): where the iterator of a DataLoader with workers is
# part of a cycle of references, as in a runner that holds its loop and the loop
# its runner, the garbage collector stops the program for 5 s for each worker. It
# has closed the queues before the iterator tells its workers to end, so they hear
# nothing, and are waited for one after the other.
#
# Seen: about 10 s in gc.collect() with two workers, and less than one second where
# the iterator is in no cycle.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import gc
import time

import torch
from torch.utils.data import DataLoader

assert torch.__version__.startswith('2.14.1'), torch.__version__
spent = {}
for cycle in (False, True):
    iterator = iter(DataLoader(torch.arange(64), 4, num_workers=2))
    next(iterator)
    holder = [iterator]
    if cycle:
        holder.append(holder)
    start = time.perf_counter()
    del iterator, holder
    gc.collect()
    spent[cycle] = time.perf_counter() - start
print('in a cycle, seconds:', {k: round(v, 1) for k, v in spent.items()})
assert spent[False] < 5 and spent[True] > 9, 'it has changed'
EOF

#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1, FullyShardedDataParallel on CPUs (gloo): `optim_state_dict` with
# `FullOptimStateDictConfig(offload_to_cpu=True)` returns all states of a parameter
# as views of the one buffer that it gathers into, since `.cpu()` copies nothing
# there. Adam's first moment is saved with the values of the second, and a resumed
# run steps with it, without an error.
#
# Seen: `exp_avg` equals `exp_avg_sq`; both are right with offload_to_cpu=False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
# in a file, since processes are spawned
cat > two.py <<'EOF'
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import (FullOptimStateDictConfig,
                                    FullStateDictConfig,
                                    FullyShardedDataParallel, StateDictType)

assert torch.__version__.startswith('2.14.1'), torch.__version__


def run(rank, port):
    os.environ.update(MASTER_ADDR='localhost', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    torch.manual_seed(0)
    model = FullyShardedDataParallel(
        torch.nn.Linear(8, 4), device_id=torch.device('cpu'),
        use_orig_params=True)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(16, 8)).square().sum().backward()
    optimizer.step()
    seen = {}
    for offload in (True, False):
        with FullyShardedDataParallel.state_dict_type(
                model, StateDictType.FULL_STATE_DICT,
                FullStateDictConfig(rank0_only=False),
                FullOptimStateDictConfig(
                    rank0_only=False, offload_to_cpu=offload)):
            state = FullyShardedDataParallel.optim_state_dict(
                model, optimizer)['state']['weight']
        first, second = state['exp_avg'], state['exp_avg_sq']
        # after one step they are 0.1 g and 0.001 g^2
        seen[offload] = (torch.equal(first, second),
                         torch.allclose(second, first.square() / 10))
    if rank == 0:
        print('offload_to_cpu -> moments are equal, and as they should be:',
              seen)
        assert seen == {
            True: (True, False),
            False: (False, True)
        }, 'it has changed'
    dist.destroy_process_group()


if __name__ == '__main__':
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    mp.spawn(run, (port, ), nprocs=2)
EOF
"$folder/venv/bin/python" -W ignore two.py

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Start of several processes on CPUs, and their end on any device."""

import contextlib
import logging
import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed

# for each launcher, the variables with rank, local rank and world size
_LAUNCHER_ENV = {
    'slurm': ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK',
            'OMPI_COMM_WORLD_SIZE'),
}


def prepare_cpu_dist(cfg: Config, launcher: str) -> None:
    """Make ``cfg`` and the process group ready for CPU processes.

    Does nothing without a launcher or where there is an accelerator. Otherwise
    it starts a gloo group, because mmengine's own start-up sets a CUDA device,
    and then leaves an existing group alone; and it changes ``cfg`` so that the
    model is wrapped without device ids. Settings of ``model_wrapper_cfg`` that
    the config makes are kept.

    Args:
        cfg: Config of the run, changed in place.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: The launcher's environment variables are missing.
    """
    if launcher == 'none' or get_device() != 'cpu':
        return
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    wrapper.update(cfg.get('model_wrapper_cfg') or {}, device_ids=None)
    cfg.model_wrapper_cfg = wrapper
    env_cfg = cfg.setdefault('env_cfg', {})
    dist_cfg = env_cfg.setdefault('dist_cfg', {})
    dist_cfg['backend'] = 'gloo'
    if not is_distributed():
        _translate_env(launcher)
        timeout = timedelta(seconds=dist_cfg.get('timeout', 1800))
        torch_dist.init_process_group('gloo', timeout=timeout)
    # the scripts set OMP_NUM_THREADS; a bare torchrun has set it to 1
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(1)


def leave_group(timeout: float = 60) -> None:
    """Meet the other processes once all work is done, and leave the group.

    A process that leaves while another still talks to it may be aborted by
    threads of the group while the interpreter ends. The wait is bounded, on
    any backend, as others may be gone or hang; then the group is not left and
    :func:`quit_group` ends the process safely.

    Args:
        timeout (float): Seconds to wait for the others. Defaults to 60.
    """
    if not is_distributed():
        return
    end = time.monotonic() + timeout
    try:
        meeting = torch_dist.barrier(async_op=True)
        while not meeting.is_completed():
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        meeting.wait()  # raises what went wrong
    except RuntimeError:
        return
    torch_dist.destroy_process_group()


def quit_group(code: int) -> NoReturn:
    """End a process whose group cannot be left, with its exit code.

    It does not wait for other processes or for threads of the group: in one
    of these the interpreter's normal exit can hang or abort.
    """
    logging.shutdown()
    with contextlib.suppress(OSError):  # their reader may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _translate_env(launcher: str) -> None:
    """Set the variables of torchrun from those of another launcher."""
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')
    sources = _LAUNCHER_ENV.get(launcher, names)
    missing = [name for name in sources if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher} needs the environment variables '
            f'{", ".join(missing)}: start the tool through its launcher '
            '(tools/dist_train.sh for pytorch, tools/slurm_train.sh for '
            'slurm, mpirun for mpi) or leave --launcher out.')
    os.environ.update(
        {name: os.environ[source] for name, source in zip(names, sources)})
    os.environ.setdefault('MASTER_PORT', os.environ.get('PORT', '29500'))
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = subprocess.check_output(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
            text=True).split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Several processes on a machine without an accelerator."""

import atexit
import os
import subprocess
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device

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
    if not torch_dist.is_initialized():
        _translate_env(launcher)
        timeout = timedelta(seconds=dist_cfg.get('timeout', 1800))
        torch_dist.init_process_group('gloo', timeout=timeout)
        # else gloo's threads may abort a process that has ended well
        atexit.register(leave_group)
    # the scripts set OMP_NUM_THREADS; a bare torchrun has set it to 1
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(1)


def leave_group() -> None:
    """Leave the process group, if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


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

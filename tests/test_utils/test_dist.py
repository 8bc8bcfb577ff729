# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Several CPU processes start, and end without waiting for ever."""

import multiprocessing
import os
import socket
import sys
import time
from functools import partial
from typing import List

import pytest
import torch
import torch.distributed as torch_dist
from mmengine.config import Config

from vim_mm.utils import cli, dist

CPU_ONLY = pytest.mark.skipif(
    dist.get_device() != 'cpu', reason='this machine has an accelerator')


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any launcher's variables, restored later."""
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR'):
        monkeypatch.setenv(name, '')  # remembers the state before the test
        monkeypatch.delenv(name)
    monkeypatch.setenv('MASTER_PORT', str(free_port()))
    yield monkeypatch
    dist.leave_group()
    assert not torch_dist.is_initialized()


def test_no_launcher_changes_nothing() -> None:
    cfg = Config(dict(model=dict()))
    dist.prepare_cpu_dist(cfg, 'none')
    assert cfg.to_dict() == dict(model=dict())
    assert not torch_dist.is_initialized()


def test_an_accelerator_is_left_to_mmengine(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, 'get_device', lambda: 'cuda')
    cfg = Config(dict())
    dist.prepare_cpu_dist(cfg, 'pytorch')
    assert cfg.to_dict() == {}


@CPU_ONLY
@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_gloo_group_and_wrapper(env: pytest.MonkeyPatch,
                                launcher: str) -> None:
    env.setenv('MASTER_ADDR', '127.0.0.1')
    names = dist._LAUNCHER_ENV.get(launcher,
                                   ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'))
    for name, value in zip(names, '001'):
        env.setenv(name, value)
    cfg = Config(
        dict(
            model_wrapper_cfg=dict(find_unused_parameters=True),
            env_cfg=dict(dist_cfg=dict(backend='nccl'), cudnn_benchmark=True)))
    dist.prepare_cpu_dist(cfg, launcher)
    assert torch_dist.get_backend() == 'gloo'
    assert os.environ['WORLD_SIZE'] == '1'
    assert cfg.model_wrapper_cfg.to_dict() == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None)
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.env_cfg.cudnn_benchmark
    dist.prepare_cpu_dist(cfg, launcher)  # a second call is harmless


@CPU_ONLY
@pytest.mark.parametrize(('launcher', 'name'), [
    ('pytorch', 'WORLD_SIZE'),
    ('slurm', 'SLURM_PROCID'),
    ('mpi', 'OMPI_COMM_WORLD_RANK'),
])
def test_a_missing_launcher_is_named(env: pytest.MonkeyPatch, launcher: str,
                                     name: str) -> None:
    with pytest.raises(ValueError, match=f'--launcher {launcher}.*{name}'):
        dist.prepare_cpu_dist(Config(dict()), launcher)


# ---------------------------------------------------------------- ending


def work(rank: int, how: str, port: int) -> None:
    """The part of a tool's processes: the second ends as ``how`` says."""
    torch_dist.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=2)
    torch_dist.all_reduce(torch.ones(1))
    if rank == 0:
        if how == 'is missed':
            torch_dist.all_reduce(torch.ones(1))
        return
    if how == 'bug':
        raise KeyError('x')
    if how == 'mistake':
        raise FileNotFoundError('There is no file x.')
    if how == 'Ctrl-C':
        raise KeyboardInterrupt
    if how == 'exit':
        sys.exit('There is no x.')
    if how == 'late':
        time.sleep(2)
    if how in ('dies', 'is missed'):
        os._exit(7)
    if how == 'hangs':
        time.sleep(600)


def tool(rank: int, how: str, port: int) -> None:
    if how == 'hangs':
        cli.leave_group = partial(dist.leave_group, timeout=1)
    cli.run_cli(lambda: work(rank, how, port))


@pytest.mark.parametrize(('how', 'codes'), [
    ('well', [0, 0]),
    ('late', [0, 0]),
    ('bug', [0, 1]),
    ('mistake', [0, 1]),
    ('Ctrl-C', [0, 130]),
    ('exit', [0, 1]),
    ('dies', [0, 7]),
    ('is missed', [1, 7]),
    ('hangs', [0, None]),
])
def test_none_waits_for_ever(how: str, codes: List[int]) -> None:
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['vim_mm.utils.cli'])
    port = free_port()
    ranks = [context.Process(target=tool, args=(rank, how, port))
             for rank in range(2)]
    for rank in ranks:
        rank.start()
    ranks[0].join(60)
    ranks[1].join(60 if how != 'hangs' else 0)
    try:
        assert [rank.exitcode for rank in ranks] == codes
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()

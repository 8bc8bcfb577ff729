# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Preparing several CPU processes."""

import os
import socket

import pytest
import torch.distributed as torch_dist
from mmengine.config import Config

from vim_mm.utils import dist

CPU_ONLY = pytest.mark.skipif(
    dist.get_device() != 'cpu', reason='this machine has an accelerator')


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any launcher's variables, restored later."""
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR'):
        monkeypatch.setenv(name, '')  # remembers the state before the test
        monkeypatch.delenv(name)
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        monkeypatch.setenv('MASTER_PORT', str(sock.getsockname()[1]))
    yield monkeypatch
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


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

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The paper-scale config as its user runs it, on two CPU processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file

from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/vim/midstream_coco.py'
COCO = Path(os.environ.get('VIM_MM_DATA', ROOT / 'data')) / 'coco'
ITERS = 2


@pytest.fixture(scope='module')
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP ViT-B/16 at full size, with random weights."""
    path = tmp_path_factory.mktemp('trunk') / 'clip.safetensors'
    cfg = Config.fromfile(ROOT / CONFIG).model.backbone.trunk
    cfg.pop('init_cfg')
    torch.manual_seed(0)
    state = {
        name: torch.randn_like(value) * .02
        for name, value in MODELS.build(cfg).state_dict().items()
    }
    save_file(state, path)
    return path


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return str(sock.getsockname()[1])


def options(trunk: Path, image_size: str) -> list:
    """Data root, trunk path, image size and schedule; nothing else."""
    val = f'{COCO}/annotations/instances_val2017.json'
    return [
        f'train_dataloader.dataset.data_root={COCO}/',
        f'val_dataloader.dataset.data_root={COCO}/',
        f'val_evaluator.ann_file={val}',
        f'model.backbone.trunk.init_cfg.checkpoint={trunk}',
        f'train_dataloader.dataset.pipeline.2.scale={image_size}',
        f'val_dataloader.dataset.pipeline.1.scale={image_size}',
        'train_cfg._delete_=True', 'train_cfg.type=IterBasedTrainLoop',
        f'train_cfg.max_iters={ITERS}', f'train_cfg.val_interval={10 * ITERS}',
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not COCO.is_dir(),
    reason='COCO pictures are absent: set VIM_MM_DATA to a folder with coco/')
def test_two_processes_train_one_module(trunk: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / 'run'
    command = [
        'bash', ROOT / 'tools/dist_train.sh', ROOT / CONFIG, '2', '--work-dir',
        str(work_dir), '--cfg-options', *options(trunk, '(128,128)')
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=dict(
            os.environ,
            PYTHON=sys.executable,
            PORT=free_port(),
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES=''))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert 'identical on all 2 processes' in done.stdout + done.stderr
    card, tensors = Zoo(str(tmp_path / 'work_dirs/zoo')).load('coco')
    assert card.num_params == 327_552  # the table of the paper, h = 8
    assert any(v.abs().sum() > 0 for k, v in tensors.items() if 'up.' in k)

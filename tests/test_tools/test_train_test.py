# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The train and test tools and their launch scripts, as a user runs them."""

import os
import pickle
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import List

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / 'tools').glob('*.sh'))

CONFIG = """
_base_ = '{root}/configs/_base_/default_runtime.py'
model = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor', mean=[127] * 3, std=[64] * 3),
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                  feedforward_channels=32),
        img_size=32, patch_size=16),
    head=dict(
        type='mmpretrain.LinearClsHead', num_classes=2, in_channels=16,
        loss=dict(type='mmpretrain.CrossEntropyLoss')))
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_prefix='{data}',
        pipeline=[
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmpretrain.PackInputs')
        ]))
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=train_dataloader['dataset'])
test_evaluator = dict(type='mmpretrain.Accuracy', topk=1)
test_cfg = dict()
train_cfg = dict(by_epoch=False, max_iters=2)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=1))
log_processor = dict(by_epoch=False)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
work_dir = '{work_dir}'
"""


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``toy.py``, its pictures and its work dir."""
    folder = tmp_path_factory.mktemp('toy')
    rng = np.random.default_rng(0)
    for name, level in (('dark', 40), ('light', 200)):
        (folder / 'data' / name).mkdir(parents=True)
        for i in range(4):
            image = rng.integers(level - 40, level + 40, (32, 32, 3))
            cv2.imwrite(
                str(folder / 'data' / name / f'{i}.png'),
                image.astype(np.uint8))
    text = CONFIG.format(
        root=ROOT, data=folder / 'data', work_dir=folder / 'work')
    (folder / 'toy.py').write_text(text)
    return folder


def run(command: List[object], cwd: Path) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    env.update(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    env['PORT'] = str(free_port())
    return subprocess.run([str(part) for part in command],
                          cwd=cwd,
                          env=env,
                          text=True,
                          capture_output=True,
                          timeout=300)


def tool(name: str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    return run([sys.executable, ROOT / 'tools' / name, *args], cwd)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_then_test_then_resume(toy: Path) -> None:
    # the command of a machine with GPUs
    trained = run([ROOT / 'tools/dist_train.sh', toy / 'toy.py', 2, '--amp'],
                  toy)
    assert trained.returncode == 0, trained.stderr
    assert 'this run computes in float32' in trained.stdout + trained.stderr
    checkpoint = toy / 'work' / 'iter_2.pth'
    # 8 pictures, 2 a process: an epoch of a two-process run has 2 steps
    assert 'Iter(train) [2/2]' in trained.stdout + trained.stderr

    tested = run([
        ROOT / 'tools/dist_test.sh', toy / 'toy.py', checkpoint, 2, '--out',
        toy / 'out.pkl', '--show-dir', toy / 'shown'
    ], toy)
    assert tested.returncode == 0, tested.stderr
    with open(toy / 'out.pkl', 'rb') as file:
        predictions = pickle.load(file)
    # what the processes measured together is what the predictions say
    hits = [bool(p['pred_label'] == p['gt_label']) for p in predictions]
    assert len(hits) == 8
    text = tested.stdout + tested.stderr
    measured = float(text.split('accuracy/top1: ')[1].split()[0])
    assert measured == pytest.approx(100 * sum(hits) / 8, abs=1e-3)
    assert list((toy / 'shown').rglob('*.png'))

    before = torch.load(checkpoint, weights_only=False)['state_dict']
    resumed = tool(
        'train.py',
        toy / 'toy.py',
        '--resume',
        '--cfg-options',
        'train_cfg.max_iters=3',
        'optim_wrapper.type=mmengine.AmpOptimWrapper',
        cwd=toy)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resumed epoch: 0, iter: 2' in resumed.stdout + resumed.stderr
    after = torch.load(
        toy / 'work' / 'iter_3.pth', weights_only=False)['state_dict']
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_a_file_to_resume_from_is_looked_for(tmp_path: Path) -> None:
    set_resume = runpy.run_path(str(ROOT / 'tools/train.py'))['set_resume']
    cfg = Config(dict(work_dir=str(tmp_path), load_from='old.pth'))
    set_resume(cfg, 'auto')
    assert cfg.resume == 'auto' and cfg.load_from == 'old.pth'
    with pytest.raises(FileNotFoundError, match='some.pth to resume from'):
        set_resume(cfg, 'some.pth')
    some = str(tmp_path / 'some.pth')
    Path(some).write_bytes(b'x')
    set_resume(cfg, some)
    assert cfg.resume is True and cfg.load_from == some


@pytest.mark.parametrize(('args', 'sentence'), [
    (['train.py', 'none.py'], 'There is no config file none.py'),
    (['train.py', str(ROOT / 'README.md')], 'README.md is no config file'),
    (['test.py', 'toy.py', 'none.pth'], 'There is no checkpoint file'),
    (['train.py', 'toy.py', '--auto-scale-lr'], 'needs auto_scale_lr'),
    (['test.py', 'toy.py', 'toy.py', '--tta'], 'needs tta_model'),
    (['test.py', 'toy.py', 'toy.py', '--out', 'x.json'], 'must end in .pkl'),
    (['train.py', 'toy.py', '--launcher', 'mpi'], 'OMPI_COMM_WORLD_RANK'),
])
def test_a_mistake_ends_in_one_sentence(toy: Path, args: List[str],
                                        sentence: str,
                                        monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(toy)
    path = str(ROOT / 'tools' / args[0])
    monkeypatch.setattr(sys, 'argv', [path, *args[1:]])
    monkeypatch.setenv('LOCAL_RANK', '0')
    for place in ('vim_mm.utils.dist', 'mmengine.device'):
        monkeypatch.setattr(f'{place}.get_device', lambda: 'cpu')
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name='__main__')
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith('Error: ') and sentence in err
    assert err.count('\n') == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_in_one_sentence(toy: Path) -> None:
    result = tool('test.py', 'toy.py', 'toy.py', cwd=toy)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith('Error: toy.py is truncated or not a torch')
    assert 'Traceback' not in result.stderr


@pytest.mark.slow
def test_a_file_of_something_else_is_not_judged(toy: Path) -> None:
    save_file({'fc.weight': torch.zeros(2)}, toy / 'module.safetensors')
    result = tool('test.py', 'toy.py', 'module.safetensors', cwd=toy)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith('Error: module.safetensors holds nothing of a')


@pytest.mark.parametrize(('model', 'scope', 'hooks'), [
    # as inherited from mmdet, with no prefix
    (dict(type='MaskRCNN', _scope_='mmdet'), 'vim_mm', {}),
    # as mmdet's and mmpretrain's own runtimes name their hooks
    (dict(type='FCOS'), 'mmdet', dict(type='DetVisualizationHook')),
    (dict(type='X'), 'mmpretrain', dict(type='VisualizationHook')),
])
def test_drawing_finds_its_library(model: dict, scope: str,
                                   hooks: dict) -> None:
    draw = runpy.run_path(str(ROOT / 'tools/test.py'))['draw_predictions']
    for visualizer in (dict(type='Visualizer'), None):
        cfg = Config(dict(model=model, default_scope=scope,
                          default_hooks=dict(visualization=dict(hooks)),
                          visualizer=visualizer))
        draw(cfg, SimpleNamespace(show=False, wait_time=1, show_dir='shown'))
        hook = cfg.default_hooks.visualization
        assert hook.get('draw') or hook.get('enable')
        assert cfg.visualizer.save_dir.endswith('shown')
        assert 'Visualizer' in cfg.visualizer.type


def test_augmentation_of_a_test_needs_its_stage() -> None:
    use_tta = runpy.run_path(str(ROOT / 'tools/test.py'))['use_tta']
    cfg = Config(dict(
        model=dict(type='X'), tta_model=dict(type='Y'),
        tta_pipeline=[dict(type='LoadImageFromFile')],
        test_dataloader=dict(dataset=dict(type='Z'))))
    with pytest.raises(ValueError, match='no TestTimeAug'):
        use_tta(cfg)
    cfg.tta_pipeline.append(dict(type='mmcv.TestTimeAug', transforms=[]))
    use_tta(cfg)
    assert cfg.model.type == 'Y' and cfg.model.module.type == 'X'


@pytest.mark.slow
def test_a_mistake_under_the_launcher_shows_no_traceback(toy: Path) -> None:
    result = run([ROOT / 'tools/dist_train.sh', 'none.py', 2], toy)
    assert result.returncode == 1
    assert 'Error: There is no config file none.py' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('gpus', ['x', '0', '-1', '1.5'])
@pytest.mark.parametrize('args', [['dist_train.sh', 'c.py'],
                                  ['dist_test.sh', 'c.py', 'c.pth']])
def test_a_number_of_processes_is_one(args: List[str], gpus: str) -> None:
    result = run([ROOT / 'tools' / args[0], *args[1:], gpus], ROOT)
    assert result.returncode == 2
    assert result.stderr == (f"GPUS must be a number of processes, 1 or more, "
                             f"not '{gpus}'.\n")


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_explain_themselves(script: Path) -> None:
    assert run(['bash', '-n', script], ROOT).returncode == 0
    assert os.access(script, os.X_OK)
    result = run([script], ROOT)
    assert result.returncode == 2
    assert result.stderr.startswith(f'Usage: tools/{script.name}')


@pytest.mark.parametrize('work_dir', [[], ['my work']])
def test_slurm_train_passes_the_options_on(tmp_path: Path,
                                           work_dir: List[str]) -> None:
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    env = dict(
        os.environ,
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        GPUS='4',
        GPUS_PER_NODE='2')
    script = ROOT / 'tools/slurm_train.sh'
    words = subprocess.run(
        [script, 'part', 'job', 'c.py', *work_dir, '--cfg-options', 'a=1'],
        env=env,
        text=True,
        capture_output=True,
        check=True).stdout.splitlines()
    assert words[:2] == ['-p', 'part'] and '--gres=gpu:2' in words
    tail = words[words.index('c.py') + 1:]
    expected = ['--work-dir', *work_dir] if work_dir else []
    assert tail == [
        *expected, '--launcher', 'slurm', '--cfg-options', 'a=1'
    ]


@pytest.mark.slow
def test_classes_in_another_order_are_refused(toy: Path) -> None:
    trained = tool('train.py', toy / 'toy.py', '--work-dir', toy / 'order',
                   cwd=toy)
    assert trained.returncode == 0, trained.stderr
    path = toy / 'order' / 'iter_2.pth'
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint['meta']['dataset_meta']['classes'] == ('dark', 'light')
    checkpoint['meta']['dataset_meta']['classes'] = ('light', 'dark')
    torch.save(checkpoint, path)
    tested = tool('test.py', toy / 'toy.py', path, cwd=toy)
    assert tested.returncode == 1
    assert "numbers its classes ['light', 'dark']" in tested.stderr
    assert 'Traceback' not in tested.stderr


@pytest.mark.slow
def test_a_mistake_found_by_all_processes_is_one_code(toy: Path) -> None:
    """After the group was made: it is left in the middle of the work."""
    result = run([
        ROOT / 'tools/dist_train.sh', toy / 'toy.py', 2, '--work-dir',
        toy / 'late', '--cfg-options', 'load_from=none.pth'
    ], toy)
    assert result.returncode == 1
    assert 'Error: There is no checkpoint file none.pth' in result.stderr
    assert 'Traceback' not in result.stderr
    assert 'terminate called' not in result.stderr

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The tasks of one run are tested, served and taken out one by one."""

import importlib.util
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any, Dict

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from _multitask import TASKS, build, loader, run_cfg
from _tiny import SCOPES, SIZE, same
from vim_mm.apis import ViMInferencer
from vim_mm.apis.split import save_task
from vim_mm.models import build_model
from vim_mm.models.multitask.single_task import task_config, task_state

ROOT = Path(__file__).resolve().parents[2]
PACK = dict(
    cls=dict(type='PackInputs'),
    det=dict(
        type='PackDetInputs',
        meta_keys=('img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    seg=dict(type='PackSegInputs'))


def whole(folder: Path, **kwargs: Any) -> Config:
    """The config of a run, its tests and how images enter it."""
    cfg = Config(run_cfg(folder, 3, **kwargs))
    cfg.test_cfg = dict(type='MultiTaskTestLoop')
    cfg.test_dataloader = {task: loader(task, train=False) for task in TASKS}
    cfg.test_evaluator = cfg.val_evaluator
    for task, own in cfg.test_dataloader.items():
        own.dataset.pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(SIZE, SIZE)), PACK[task]
        ]
    return cfg


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.py, iter_3.pth and 0.png."""
    folder = tmp_path_factory.mktemp('serving')
    cfg = whole(folder)
    cfg.dump(folder / 'run.py')
    Runner.from_cfg(cfg).train()
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3))
    cv2.imwrite(str(folder / '0.png'), image.astype(np.uint8))
    return folder


def files(run: Path) -> tuple:
    return str(run / 'run.py'), str(run / 'iter_3.pth')


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        Path(name).stem, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(monkeypatch: pytest.MonkeyPatch, name: str, *args: str) -> Any:
    monkeypatch.setattr('sys.argv', [f'{name}.py', *map(str, args)])
    return tool(name).main()


def metrics(folder: Path) -> Dict[str, float]:
    path, = folder.glob('*/*.json')
    return {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if not key.endswith('time')
    }


def test_a_test_of_one_task_is_that_of_all(
        run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (*files(run), '--work-dir')
    call(monkeypatch, 'test', *args, tmp_path / 'all', '--out',
         tmp_path / 'all.pkl')
    together, alone = metrics(tmp_path / 'all'), {}
    for task in TASKS:
        out = tmp_path / f'{task}.pkl'
        call(monkeypatch, 'test', *args, tmp_path / task, '--task', task,
             '--out', out)
        alone.update({
            f'{task}/{key}': value
            for key, value in metrics(tmp_path / task).items()
        })
        first, second = (
            pickle.loads(path.read_bytes())
            for path in (out, tmp_path / f'all.{task}.pkl'))
        assert len(first) == len(second) == 8
    assert together == alone and len(alone) > 5


@pytest.mark.parametrize('task', TASKS)
def test_a_task_is_taken_out(run: Path, tmp_path: Path, task: str,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers as before, and trains on with its own library."""
    config, checkpoint = save_task(*files(run), task, tmp_path / 'own')
    cfg = Config.fromfile(config)
    assert cfg.default_scope == SCOPES[task] and 'load_task' not in cfg
    state = torch.load(checkpoint, weights_only=False)
    assert state['meta']['dataset_meta']['classes']
    model = build_model(cfg)
    model.load_state_dict(state['state_dict'])
    assert {key.split('.')[0]
            for key in state['state_dict']
            } <= {name
                  for name, _ in model.named_children()}
    one = ViMInferencer(config, str(checkpoint), show_progress=False)
    several = ViMInferencer(*files(run), task=task, show_progress=False)
    image = str(run / '0.png')
    found, expected = (
        each(image, return_datasamples=True)['predictions'][0].to_dict()
        for each in (one, several))
    assert same_values(found, expected)

    cfg.load_from, cfg.work_dir = str(checkpoint), str(tmp_path / 'on')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 3


def same_values(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same_values(first[key], second[key]) for key in first)
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return type(first) is type(second)


def text(answer: dict) -> str:
    return json.dumps(answer, default=lambda array: array.tolist())


def test_all_tasks_are_served_by_one_backbone(run: Path) -> None:
    served = ViMInferencer(*files(run), show_progress=False)
    assert list(served.tasks) == TASKS
    image = str(run / '0.png')
    answers = served(image, task=TASKS)['predictions']
    assert [one['task'] for one in answers] == TASKS
    for task, answer in zip(TASKS, answers):
        alone = ViMInferencer(*files(run), task=task, show_progress=False)
        other = alone(image)['predictions'][0]
        assert text(other) == text(answer)
    together, apart = served.memory()
    assert together < 0.5 * apart


def test_the_tool_serves_one_task(run: Path, capsys: pytest.CaptureFixture,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    model = ','.join(files(run))
    image = str(run / '0.png')
    for args in (('--model', model, '--task', 'seg'),
                 ('--model', f'{model},seg'), ('--model', f'seg={model}')):
        assert call(monkeypatch, 'infer', image, *args) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split('\t')[1] for line in lines] == ['seg']
    call(monkeypatch, 'infer', image, '--model', f'x={model},det')
    assert capsys.readouterr().out.split('\t')[1] == 'x'
    with pytest.raises(ValueError, match='names one task, but its model has'):
        call(monkeypatch, 'infer', image, '--model', f'x={model}')


def test_the_split_tool(run: Path, tmp_path: Path,
                        capsys: pytest.CaptureFixture,
                        monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'det'
    name = 'model_converters/split_task'
    call(monkeypatch, name, *files(run), 'det', folder)
    assert capsys.readouterr().out.split() == [
        str(folder / 'det.py'),
        str(folder / 'det.pth')
    ]
    with pytest.raises(FileExistsError, match='is there already'):
        call(monkeypatch, name, *files(run), 'det', folder)
    with pytest.raises(ValueError, match="no task 'pose'; the config knows"):
        call(monkeypatch, name, *files(run), 'pose', tmp_path / 'pose')
    with pytest.raises(ValueError, match='of one task only'):
        call(monkeypatch, name, folder / 'det.py', folder / 'det.pth', 'det',
             tmp_path / 'again')
    with pytest.raises(ValueError, match='nothing to take out'):
        call(monkeypatch, name,
             files(run)[0], folder / 'det.pth', 'det', tmp_path / 'again')
    assert not (tmp_path / 'again').exists()


def test_another_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    config, checkpoint = files(run)
    stored = torch.load(checkpoint, weights_only=False)
    for key in list(stored['state_dict']):
        if key.startswith('models.det.bbox_head'):
            stored['state_dict'].pop(key)
    poor = str(tmp_path / 'poor.pth')
    torch.save(stored, poor)
    with pytest.raises(ValueError, match='lacks .*bbox_head'):
        ViMInferencer(config, poor, task='det')
    with pytest.raises(ValueError, match="There is no task 'pose'"):
        ViMInferencer(config, checkpoint, task='pose')
    cfg = Config.fromfile(config)
    cfg.load_from, cfg.work_dir = poor, str(tmp_path / 'test')
    with pytest.raises(ValueError, match='lacks .*bbox_head'):
        Runner.from_cfg(cfg).test()
    single = task_config(cfg, 'det')
    single.pop('load_task')
    single.load_from = checkpoint
    with pytest.raises(ValueError, match='say which of them is meant'):
        Runner.from_cfg(single).test()


def test_averaged_weights_are_those_of_the_task(tmp_path: Path) -> None:
    """A run with an average tests it, alone as together."""
    hooks = [dict(type='EMAHook', momentum=0.3)]
    cfg = whole(tmp_path, custom_hooks=hooks)
    Runner.from_cfg(cfg).train()
    cfg.load_from = str(tmp_path / 'iter_3.pth')
    both = build(
        tmp_path / 'both', **{
            key: cfg[key]
            for key in ('test_cfg', 'test_dataloader', 'test_evaluator',
                        'load_from', 'custom_hooks')
        })
    both.test()
    one = Runner.from_cfg(task_config(cfg, 'det'))
    one.test()
    assert same(
        dict(task_state(both.model.state_dict(), 'det')),
        one.model.state_dict())

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Ordinary configs of three libraries as one config, sorted by task."""

from pathlib import Path

import pytest
from mmengine.config import Config

from vim_mm.utils.join_tasks import PARTS, join_tasks

CONFIG = '''
import importlib
join = importlib.import_module('vim_mm.utils.join_tasks').join_tasks
parts = join(
    cls='mmpretrain::resnet/resnet50_8xb32_in1k.py',
    det='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    seg='mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
model = dict(tasks=parts.tasks)
train_dataloader = parts.train_dataloader
val_evaluator = parts.val_evaluator
del parts, join
'''


@pytest.fixture()
def config(tmp_path: Path) -> Path:
    path = tmp_path / 'joined.py'
    path.write_text(CONFIG)
    return path


def test_three_libraries(config: Path) -> None:
    cfg = Config.fromfile(config)
    assert set(cfg) == {'model', 'train_dataloader', 'val_evaluator'}
    assert [part._scope_ for part in cfg.model.tasks.values()
            ] == ['mmpretrain', 'mmdet', 'mmseg']
    # mmpretrain keeps its preprocessor beside the model
    assert cfg.model.tasks.cls.data_preprocessor.num_classes == 1000
    assert cfg.train_dataloader.det.dataset._scope_ == 'mmdet'
    assert cfg.train_dataloader.det.batch_sampler._scope_ == 'mmdet'
    assert cfg.val_evaluator.seg._scope_ == 'mmseg'


def test_is_inherited_and_dumped(config: Path) -> None:
    child = config.parent / 'child.py'
    child.write_text(f'_base_ = {str(config)!r}\n'
                     'model = dict(tasks=dict(det=dict(bbox_head='
                     'dict(num_classes=3))))')
    cfg = Config.fromfile(child)
    assert cfg.model.tasks.det.bbox_head.num_classes == 3
    assert cfg.model.tasks.det.type == 'RetinaNet'
    cfg.dump(config.parent / 'dumped.py')
    again = Config.fromfile(config.parent / 'dumped.py')
    assert again.to_dict() == cfg.to_dict()


def test_lists_of_evaluators(tmp_path: Path) -> None:
    path = tmp_path / 'one.py'
    path.write_text("default_scope = 'mmpretrain'\nmodel = dict(type='A')\n"
                    "val_evaluator = [dict(type='B'), dict(type='C', "
                    "_scope_='mmdet')]")
    parts = join_tasks(cls=str(path))
    assert [e._scope_ for e in parts.val_evaluator.cls
            ] == ['mmpretrain', 'mmdet']
    assert set(parts) == {'tasks', *PARTS}
    assert not parts.train_dataloader


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no config file nowhere.py'):
        join_tasks(det='nowhere.py')
    empty = tmp_path / 'empty.py'
    empty.write_text('a = 1')
    with pytest.raises(ValueError, match="task 'det' has no `model`"):
        join_tasks(det=str(empty))


def test_functions_get_no_scope(tmp_path: Path) -> None:
    """mmengine would hand it on to them."""
    path = tmp_path / 'one.py'
    path.write_text("default_scope = 'mmpretrain'\nmodel = dict(type='A')\n"
                    'train_dataloader = dict(dataset=dict(type="B"), '
                    'collate_fn=dict(type="default_collate"))')
    loader = join_tasks(cls=str(path)).train_dataloader.cls
    assert loader.collate_fn == dict(type='default_collate')
    assert loader.dataset._scope_ == 'mmpretrain'

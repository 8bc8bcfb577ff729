# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Missing data is named before anything is built."""

from pathlib import Path

import pytest
from mmengine.config import Config

from vim_mm.utils.data import check_data


def config(root: str, **dataset) -> Config:
    return Config(
        dict(train_dataloader=dict(dataset=dict(data_root=root, **dataset))))


def test_a_missing_root_names_its_option(tmp_path: Path) -> None:
    cfg = config(str(tmp_path / 'nowhere'))
    with pytest.raises(
            FileNotFoundError,
            match='nowhere.*train_dataloader.dataset.data_root'):
        check_data(cfg, ('train_dataloader', ))
    check_data(cfg, ('val_dataloader', ))  # not needed, not looked at


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    cfg = config(str(tmp_path), ann_file='a.json')
    with pytest.raises(FileNotFoundError, match='a.json'):
        check_data(cfg, ('train_dataloader', ))
    (tmp_path / 'a.json').touch()
    check_data(cfg, ('train_dataloader', ))


def test_wrapped_data_sets_are_found(tmp_path: Path) -> None:
    inner = [dict(data_root=str(tmp_path)), dict(data_root='gone')]
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset', dataset=dict(datasets=inner)))))
    with pytest.raises(
            FileNotFoundError,
            match=r'dataset\.dataset\.datasets\.1\.data_root'):
        check_data(cfg, ('train_dataloader', ))


def test_remote_data_is_not_looked_for() -> None:
    check_data(config('s3://bucket/x', ann_file='a'), ('train_dataloader', ))


@pytest.mark.parametrize('prefix, option', [
    ('train', 'data_prefix'),
    (dict(img='train/'), 'data_prefix.img'),
    (dict(img_path='train', seg_map_path=''), 'data_prefix.img_path'),
])
def test_missing_pictures_name_their_option(prefix: object, option: str,
                                            tmp_path: Path) -> None:
    cfg = config(str(tmp_path), data_prefix=prefix)
    (tmp_path / 'train2').mkdir()  # another folder, no file of that prefix
    with pytest.raises(
            FileNotFoundError,
            match=f'train.*`train_dataloader.dataset.{option}`'):
        check_data(cfg, ('train_dataloader', ))
    (tmp_path / 'train').mkdir()
    check_data(cfg, ('train_dataloader', ))


def test_a_prefix_may_begin_the_names_of_files(tmp_path: Path) -> None:
    (tmp_path / 'COCO_train_1.jpg').touch()
    check_data(
        config(str(tmp_path), data_prefix=dict(img='COCO_train_')),
        ('train_dataloader', ))


def test_data_that_is_downloaded_may_be_missing(tmp_path: Path) -> None:
    kind = dict(type='mmpretrain.CIFAR10', split='train')
    check_data(config(str(tmp_path / 'new'), **kind), ('train_dataloader', ))
    # a base's scope is noted in the outermost data set
    wrapped = dict(
        type='RepeatDataset',
        _scope_='mmpretrain',
        dataset=dict(type='CIFAR10', data_root=str(tmp_path / 'new')))
    cfg = Config(dict(train_dataloader=dict(dataset=wrapped)))
    cfg.default_scope = 'vim_mm'
    check_data(cfg, ('train_dataloader', ))
    with pytest.raises(FileNotFoundError, match='new'):
        check_data(
            config(str(tmp_path / 'new'), download=False, **kind),
            ('train_dataloader', ))


def test_label_maps_are_asked_for_where_they_are_read(tmp_path: Path) -> None:
    settings = dict(data_prefix=dict(seg_map_path='ann'))
    check_data(config(str(tmp_path), **settings), ('train_dataloader', ))
    settings['pipeline'] = [dict(type='mmseg.LoadAnnotations')]
    with pytest.raises(FileNotFoundError, match='data_prefix.seg_map_path'):
        check_data(config(str(tmp_path), **settings), ('train_dataloader', ))


def test_pictures_of_another_storage_are_not_looked_for(
        tmp_path: Path) -> None:
    load = dict(type='LoadImageFromFile', backend_args=dict(backend='lmdb'))
    check_data(
        config(str(tmp_path), data_prefix='train', pipeline=[load]),
        ('train_dataloader', ))


def test_what_metrics_are_measured_by_is_looked_for(tmp_path: Path) -> None:
    cfg = Config(
        dict(
            test_dataloader=dict(dataset=dict(data_root=str(tmp_path))),
            test_evaluator=[dict(), dict(ann_file='data/gone.json')]))
    with pytest.raises(
            FileNotFoundError, match='gone.json.*`test_evaluator.1.ann_file`'):
        check_data(cfg, ('test_dataloader', ))

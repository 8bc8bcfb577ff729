# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows of all modules from one look at every batch."""

from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from _tiny import (KINDS, Pictures, add_modules, build_model, fusion_neck,
                   save_trunk)
from vim_mm.features import module_rows as source
from vim_mm.features.cache import cache_features
from vim_mm.features.module_rows import TRUNK, module_rows
from vim_mm.features.rows import rows_of


def model_and_loader(folder: Path, kind: str, **loader) -> tuple:
    backbone = dict(trunk=save_trunk(folder / 'trunk.pth'))
    model = build_model(kind, backbone, fusion_neck(kind)).eval()
    add_modules(model.backbone, 'a', 'b', std=.05)
    return model, DataLoader(
        Pictures(kind, 8),
        **dict(dict(batch_size=3, collate_fn=pseudo_collate), **loader))


@pytest.mark.parametrize('kind', KINDS)
def test_they_are_those_of_each_module_alone(tmp_path: Path,
                                             kind: str) -> None:
    model, loader = model_and_loader(tmp_path, kind)
    rows = module_rows(model, loader, ['b', 'a'], 0)
    assert list(rows) == [TRUNK, 'b', 'a']
    for name, modules in ((TRUNK, []), ('a', ['a']), ('b', ['b'])):
        with model.backbone.only(*modules):
            expected = rows_of(cache_features(model, loader), 0)
        assert all(torch.equal(*pair) for pair in zip(rows[name], expected))
    assert not torch.equal(rows['a'][0], rows[TRUNK][0])


def test_batches_are_limited_and_thinned(tmp_path: Path,
                                         monkeypatch) -> None:
    model, loader = model_and_loader(tmp_path, 'seg')
    rows = module_rows(model, loader, ['a', 'b'], 0, max_pictures=4)
    assert rows['a'][2].unique().tolist() == list(range(6))
    monkeypatch.setattr(source, 'MAX_ROWS', 10)
    few = module_rows(model, loader, ['a', 'b'], 0, max_pictures=4)
    assert len(few['a'][0]) == 10
    # other patches of each batch
    first, second = (few['a'][1][few['a'][2] // 3 == i] for i in (0, 1))
    assert len(first) == len(second) == 5
    # the very same patches for every module
    for part in (1, 2):
        assert torch.equal(few['a'][part], few['b'][part])
    whole = torch.cat([rows['a'][0], rows['a'][2][:, None]], 1).tolist()
    kept = torch.cat([few['a'][0], few['a'][2][:, None]], 1).tolist()
    assert all(row in whole for row in kept)


def test_a_loader_without_a_batch_is_a_sentence(tmp_path: Path) -> None:
    model, loader = model_and_loader(
        tmp_path, 'cls', batch_size=9, drop_last=True)
    with pytest.raises(ValueError, match='do not fill one batch of 9'):
        module_rows(model, loader, ['a'], 0)

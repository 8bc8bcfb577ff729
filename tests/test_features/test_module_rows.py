# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features at any weights, from one look at the images."""

from pathlib import Path
from typing import Any, Tuple

import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torch.utils.data import DataLoader

from _tiny import (KINDS, Pictures, add_modules, build_model, fusion_neck,
                   save_trunk)
from vim_mm.engine.model_parts import fused_features, fusing_part
from vim_mm.features import module_rows as source
from vim_mm.features.cache import cache_features
from vim_mm.features.module_rows import ModuleFeatures
from vim_mm.features.rows import rows_of

NAMES = ['b', 'a']
#: two modules in all layers, in the last one alone, beside the trunk
PLACES = dict(
    layers=dict(),
    last=dict(slots=r'layers\.2\.ffn'),
    beside=dict(type='SideLadder'))


def model_and_loader(folder: Path, kind: str, place: str = 'layers',
                     fusion: str = 'LinearMoE', in_neck: bool = False,
                     **loader) -> tuple:
    backbone = dict(trunk=save_trunk(folder / 'trunk.pth'))
    neck = fusion_neck(kind)
    if in_neck:
        neck = dict(fusion_neck(kind, NAMES), fusion=dict(type=fusion))
    model = build_model(kind, backbone, neck).eval()
    add_modules(model.backbone, *NAMES, std=.05, **PLACES[place])
    if not in_neck:
        model.backbone.set_fusion(dict(type=fusion))
    return model, DataLoader(
        Pictures(kind, 8),
        **dict(dict(batch_size=3, collate_fn=pseudo_collate), **loader))


def features_of(model: Any, loader: DataLoader, **kwargs) -> ModuleFeatures:
    part = fusing_part(model)

    def weigh(weights: tuple) -> None:
        part.fusion.set_weights('default', torch.tensor(weights))

    return ModuleFeatures(
        model, loader, NAMES, lambda x: fused_features(model, x), weigh, 2,
        0, **kwargs)


def count(model: Any) -> list:
    """Images that the trunk sees from now on."""
    seen = []
    model.backbone.trunk.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def slow(model: Any, loader: DataLoader,
         weights: tuple) -> Tuple[Tensor, Tensor, Tensor]:
    """One pass with modules weighed so."""
    part = fusing_part(model)
    part.fusion.set_weights('default', torch.tensor(weights))
    cached = cache_features(model, loader)
    if part is not model.backbone:
        for batch in cached:
            batch.features = tuple(part.fuse(batch.features))
    return rows_of(cached, 0)


@pytest.mark.parametrize('in_neck', [False, True])
@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('kind', KINDS)
def test_they_are_those_of_a_pass(tmp_path: Path, kind: str, place: str,
                                  in_neck: bool) -> None:
    model, loader = model_and_loader(tmp_path, kind, place, in_neck=in_neck)
    seen = count(model)
    features = features_of(model, loader)
    settings = [(0., 0.), (1., 0.), (0., 1.), (.5, .5), (.25, 0.), (1., .1)]
    found = {weights: features.rows(weights) for weights in settings}
    assert features.passes == sum(seen) / 8
    assert features.is_exact == (place != 'layers' or in_neck)
    if features.is_exact:
        # the trunk, each module where it sits in it, and one trial batch
        trial = 3 / 8 * (1 + 2 * (in_neck and place != 'beside'))
        once = 1 if place == 'beside' else 3
        assert features.passes == pytest.approx(once + trial)
    else:
        assert features.passes == len(settings)
    for weights, x in found.items():
        expected, labels, picture = slow(model, loader, weights)
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(features.labels, labels)
        assert torch.equal(features.picture, picture)
    assert not torch.equal(found[1., 0.], found[0., 0.])


def test_the_progress_says_which_setting(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(*model_and_loader(tmp_path, 'cls'))
    said: list = []
    monkeypatch.setattr(source, 'track',
                        lambda items, what, _: said.append(what) or items)
    for weights in ((0., 0.), (1., 0.), (1., 0.), (.5, .5)):
        list(features.batches(weights))
    assert said == [f'Scoring modules, setting {i}' for i in (1, 2, 2, 3)]


@pytest.mark.parametrize('kind', KINDS)
def test_as_modules_are_weighed_now(tmp_path: Path, kind: str) -> None:
    model, loader = model_and_loader(tmp_path, kind)
    features = features_of(model, loader)
    model.backbone.fusion.logits['default'].data.normal_(0, .5)
    x = features.rows(None)
    expected = rows_of(cache_features(model, loader), 0)[0]
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize('fusion', ['EnsMoE', 'RoutedMoE', 'ParameterMerge'])
def test_other_fusions_take_passes(tmp_path: Path, fusion: str) -> None:
    model, loader = model_and_loader(tmp_path, 'seg', fusion=fusion)
    features = features_of(model, loader)
    x = features.rows((.25, .5))
    expected, *_ = slow(model, loader, (.25, .5))
    assert torch.equal(x, expected)


def test_eight_modules_in_ten_passes(tmp_path: Path) -> None:
    model, loader = model_and_loader(tmp_path, 'seg')
    names = list('abcdefgh')
    add_modules(model.backbone, *names[2:], std=.05)
    model.backbone.set_fusion(dict(type='LinearMoE'))
    seen = count(model)

    def weigh(weights: tuple) -> None:
        model.backbone.fusion.set_weights('default', torch.tensor(weights))

    features = ModuleFeatures(model, loader, model.backbone.bank.names,
                              model.backbone, weigh, 8, 0)
    singles = [features.single(i) for i in range(8)]
    for weights in (features.bare, *singles, (1 / 8, ) * 8):
        features.rows(weights)
    assert sum(seen) == 10 * 8


def test_images_are_limited_and_rows_thinned(tmp_path: Path,
                                             monkeypatch) -> None:
    model, loader = model_and_loader(tmp_path, 'seg')
    few = features_of(model, loader, max_pictures=4)
    assert few.picture.unique().tolist() == list(range(6))
    whole = few.rows((1., 0.))
    monkeypatch.setattr(source, 'MAX_ROWS', 10)
    thin = features_of(model, loader, max_pictures=4)
    x = thin.rows((1., 0.))
    assert len(x) == len(thin.labels) == len(thin.picture) == 10
    assert len(thin.picture.unique()) > 3
    assert all(row in whole.tolist() for row in x.tolist())
    monkeypatch.setattr(source, 'MAX_BYTES', 1)
    assert features_of(model, loader).num_pictures == 3


def test_a_loader_without_a_batch_is_a_sentence(tmp_path: Path) -> None:
    model, loader = model_and_loader(
        tmp_path, 'cls', batch_size=9, drop_last=True)
    with pytest.raises(ValueError, match='do not fill one batch of 9'):
        features_of(model, loader)

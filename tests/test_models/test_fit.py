# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which checkpoints are judged, and which are of something else."""

from typing import Optional

import pytest
import torch

from _loading import lines
from _tiny import KINDS, add_modules, build_model, fusion_neck, model_cfg, vit
from vim_mm.models import fit
from vim_mm.models.fit import check_classes, check_fit
from vim_mm.registry import MODELS


def test_files_of_something_else() -> None:
    model = build_model('cls', dict(trunk=vit(), new_module='n'))
    own = model.state_dict()
    check_fit(model, own, 'x.pth')
    with pytest.raises(ValueError, match='x.pth holds nothing of a backbone'):
        check_fit(model, {'fc.weight': torch.ones(1)}, 'x.pth')
    other = build_model('cls', dict(trunk=vit(), new_module='m')).state_dict()
    with pytest.raises(ValueError, match='x.pth lacks .* tensors.*members.n'):
        check_fit(model, other, 'x.pth')
    wide = {
        key: value[..., None] if key.startswith('head') else value
        for key, value in own.items()
    }
    with pytest.raises(ValueError, match='another shape.*head'):
        check_fit(model, wide, 'x.pth')


def test_statistics_count_as_learned() -> None:
    model = build_model('seg', dict(trunk=vit(), new_module='n'))
    state = model.state_dict()
    key = next(key for key in state if key.endswith('running_mean'))
    del state[key]
    with pytest.raises(ValueError, match='lacks 1 tensors.*running_mean'):
        check_fit(model, state, 'x.pth')


def test_a_larger_zoo_and_other_tasks_may_be_missing() -> None:
    before = build_model('cls', dict(trunk=vit()))
    add_modules(before.backbone, 'a', 'b')
    before.backbone.set_fusion(dict(type='EnsMoE', tasks=['old']))
    state = before.state_dict()
    grown = build_model('cls', dict(trunk=vit()))
    add_modules(grown.backbone, 'a', 'b', 'c')
    grown.backbone.set_fusion(
        dict(type='EnsMoE', tasks=dict(old=['a', 'b'], new_old=['a', 'c'])))
    grown.backbone.select_task('old')
    check_fit(grown, state, 'x.pth')
    # where a task is selected later, all of them count
    with pytest.raises(ValueError, match='lacks .*logits.new_old'):
        check_fit(grown, state, 'x.pth', every_task=True)
    grown.backbone.select_task('new_old')
    with pytest.raises(ValueError, match='lacks .*logits.new_old'):
        check_fit(grown, state, 'x.pth')
    # a module that the config tunes is no longer the zoo's
    grown.backbone.select_task('old')
    grown.backbone.bank.members['c'].requires_grad_(True)
    with pytest.raises(ValueError, match='lacks .*members.c'):
        check_fit(grown, state, 'x.pth')


def test_checkpoints_of_other_libraries_fit() -> None:
    model = build_model('cls', dict(trunk=vit()))
    stock = {
        key: value
        for key, value in model.state_dict().items()
        if 'fingerprint' not in key
    }
    stock['backbone.layers.0.ln1.weight'] = torch.ones(4)
    check_fit(model, stock, 'x.pth')


@pytest.mark.parametrize(('own', 'words'), [
    ([], None), (['a', 'b'], None), (['a'], None),
    (['a', 'c'], "so 'c' is what it calls 'b'"),
    (['c', 'd'], "so 'c' is what it calls 'a'"),
    (['a', 'b', 'c'], "so 'c' is what it calls 'none'"),
])
def test_classes_that_fit(own: list, words: Optional[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, fit)
    check_classes(own, dict(dataset_meta=dict(classes=('a', 'b'))), 'x.pth')
    check_classes(own, {}, 'x.pth')
    assert [words in each for each in told] == [True] * (words is not None)


def test_classes_in_another_order() -> None:
    meta = dict(dataset_meta=dict(classes=('b', 'a')))
    with pytest.raises(ValueError, match="x.pth numbers its classes.*'b'"):
        check_classes(['a', 'b'], meta, 'x.pth')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('fusion', [None, dict(type='EnsMoE')])
def test_what_a_frozen_config_would_drop(kind: str, fusion: dict) -> None:
    """mmengine leaves it out with a line in the log."""
    fused = build_model(
        kind, dict(trunk=vit(), new_module='n', fusion=fusion)).state_dict()
    said = 'gates and the module' if fusion else 'the module'
    cfg = model_cfg(kind, dict(trunk=vit()), fusion_neck(kind))
    for backbone in (cfg.backbone, vit()):
        frozen = MODELS.build(dict(cfg, backbone=backbone))
        with pytest.raises(ValueError, match=f"x.pth holds {said} 'n', which "
                           'the model has no place for'):
            check_fit(frozen, fused, 'x.pth')
    plain = {k: v for k, v in fused.items() if 'fingerprint' not in k}
    check_fit(frozen, plain, 'x.pth')  # another library's own


def test_gates_of_a_neck_would_be_dropped() -> None:
    backbone = dict(trunk=vit(), new_module='n')
    fused = build_model('seg', backbone, fusion_neck('seg', ['n']))
    plain = build_model('seg', backbone)
    with pytest.raises(ValueError, match='x.pth holds gates, which'):
        check_fit(plain, fused.state_dict(), 'x.pth')
    check_fit(fused, fused.state_dict(), 'x.pth')


@pytest.mark.parametrize('number', [float('nan'), float('inf')])
@pytest.mark.parametrize('kind', KINDS)
def test_weights_that_are_no_numbers(kind: str, number: float) -> None:
    model = build_model(kind, dict(trunk=vit(), new_module='n'))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    check_fit(model, state, 'x.pth')
    key = next(k for k, _ in model.named_parameters() if 'head' in k)
    state[key].view(-1)[0] = number
    with pytest.raises(ValueError, match=f'such as {number} in {key}: its tr'):
        check_fit(model, state, 'x.pth')


def test_masks_may_hold_infinity() -> None:
    model = build_model('cls', dict(trunk=vit()))
    model.register_buffer('mask', torch.tensor([0., float('-inf')]))
    check_fit(model, model.state_dict(), 'x.pth')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The licence of a head that a model begins with stays with all made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from _tiny import (KINDS, build_runner, first_of, fusion_neck, model_cfg,
                   save_trunk)
from vim_mm.apis.bake import bake
from vim_mm.apis.serving import load_model
from vim_mm.models.distillers import build_outside
from vim_mm.models.head_origin import KEY, head_parts
from vim_mm.models.multitask.single_task import task_checkpoint
from vim_mm.zoo import Zoo, head_state, save_module

LICENCE = 'CC BY-NC-SA 4.0'


def model(kind: str, folder: Path, **backbone: Any) -> dict:
    trunk = save_trunk(folder / 'trunk.pth')
    cfg = model_cfg(kind, dict(dict(trunk=trunk), **backbone),
                    fusion_neck(kind))
    if not (folder / 'zoo').exists():
        run = build_runner(
            kind, model_cfg(kind, dict(trunk=trunk, new_module='m'),
                            fusion_neck(kind)), folder / 'mid')
        zoo = str(folder / 'zoo')
        for name, licence in (('m', LICENCE), ('free', 'MIT'),
                              ('own', 'BSD')):
            save_module(run.model.backbone, 'm', zoo, save_as=name,
                        head=head_state(run.model), licence=licence,
                        dataset=f'data of {name}')
    return cfg


def from_module(folder: Path, **kwargs: Any) -> dict:
    return dict(type='vim_mm.ModuleHeadHook', module='m',
                zoo=str(folder / 'zoo'), **kwargs)


def fused(folder: Path, name: str, *hooks: dict, **kwargs: Any) -> Runner:
    """A run over a fusion of the module of the free licence."""
    return build_runner(
        'cls', fusion_of(folder), folder / name, iters=2,
        custom_hooks=list(hooks), **kwargs)


def fusion_of(folder: Path) -> dict:
    return model(
        'cls', folder, zoo=str(folder / 'zoo'), modules=['free'],
        fusion=dict(type='vim_mm.EnsMoE'))


def baked(folder: Path, checkpoint: Path) -> set:
    cfg = Config(dict(default_scope='mmpretrain', model=fusion_of(folder)))
    found, _ = load_model(cfg, str(checkpoint))
    card = bake(found, 'baked', str(folder / 'out'), size=32, threshold=0,
                overwrite=True).card
    assert card.licence.split(' AND ') == [p['licence'] for p in card.parts]
    return {part['name'] for part in card.parts}


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_a_module_that_learned_beside_the_head(tmp_path: Path,
                                               kind: str) -> None:
    cfg = model(kind, tmp_path, new_module='n')
    to_zoo = dict(type='vim_mm.ModuleToZooHook', zoo=str(tmp_path / 'zoo'),
                  dataset='squares', task=kind, licence='CC0-1.0')
    hooks = [from_module(tmp_path), to_zoo, dict(type='EMAHook')]
    build_runner(kind, cfg, tmp_path / 'run', custom_hooks=hooks).train()
    card = Zoo(tmp_path / 'zoo').card('n')
    assert card.licence == f'CC0-1.0 AND {LICENCE}'
    assert card.dataset == 'squares'
    [part] = card.parts
    assert part['name'] == 'm' and part['sha256']
    # and on to the next one
    cfg = model(kind, tmp_path, new_module='o')
    hooks = [dict(from_module(tmp_path), module='n'), to_zoo]
    build_runner(kind, cfg, tmp_path / 'next', custom_hooks=hooks).train()
    card = Zoo(tmp_path / 'zoo').card('o')
    assert [part['name'] for part in card.parts] == ['m', 'n']


def test_what_is_baked_from_a_run_or_one_that_went_on_from_it(
        tmp_path: Path) -> None:
    run = fused(tmp_path, 'first', from_module(tmp_path))
    run.train()
    first = tmp_path / 'first/iter_2.pth'
    assert baked(tmp_path, first) == {'m', 'free'}
    # a run that is resumed, and runs without the hook that start from it
    resumed = fused(tmp_path, 'first', from_module(tmp_path), resume=True,
                    train_cfg=dict(by_epoch=False, max_iters=3))
    resumed.train()
    assert head_parts(resumed.model) == head_parts(run.model) != []
    loaded = fused(tmp_path, 'loaded', load_from=str(first))
    loaded.train()
    assert baked(tmp_path, tmp_path / 'loaded/iter_2.pth') == {
        'm', 'free'}
    third = fused(tmp_path, 'third')
    third.model.init_cfg = dict(type='Pretrained', checkpoint=str(first))
    third.train()
    assert baked(tmp_path, tmp_path / 'third/iter_2.pth') == {
        'm', 'free'}


def test_a_head_that_is_not_taken_has_no_share(tmp_path: Path) -> None:
    fused(tmp_path, 'own').train()
    own = tmp_path / 'own/iter_2.pth'
    assert baked(tmp_path, own) == {'free'}
    kept = fused(tmp_path, 'kept', from_module(tmp_path), load_from=str(own))
    kept.train()
    assert baked(tmp_path, tmp_path / 'kept/iter_2.pth') == {'free'}
    # another head in its place
    fused(tmp_path, 'first', from_module(tmp_path)).train()
    other = dict(from_module(tmp_path), module='free', keep_loaded=False)
    again = fused(tmp_path, 'again', other,
                  load_from=str(tmp_path / 'first/iter_2.pth'))
    again.train()
    assert [part['name'] for part in head_parts(again.model)] == ['free']


def test_a_module_saved_from_a_checkpoint(tmp_path: Path) -> None:
    import runpy
    cfg = model('cls', tmp_path, new_module='n')
    build_runner('cls', cfg, tmp_path / 'run',
                 custom_hooks=[from_module(tmp_path)]).train()
    config = tmp_path / 'run.py'
    Config(dict(default_scope='mmpretrain', model=cfg,
                module_card=dict(licence='CC0-1.0'))).dump(config)
    main = runpy.run_path(
        str(Path(__file__).resolve().parents[3] / 'tools/zoo.py'))['main']
    main(['save', str(config), str(tmp_path / 'run/iter_4.pth'),
          str(tmp_path / 'zoo')])
    assert Zoo(tmp_path / 'zoo').card('n').licence == f'CC0-1.0 AND {LICENCE}'


@pytest.mark.slow
def test_students(tmp_path: Path) -> None:
    """They keep what their teacher and they themselves are made of."""
    fused(tmp_path, 'teacher', from_module(tmp_path)).train()
    teacher = dict(model=dict(fusion_of(tmp_path)),
                   checkpoint=str(tmp_path / 'teacher/iter_2.pth'))
    distiller = dict(
        type='vim_mm.Distiller',
        student=fusion_of(tmp_path),
        teacher=teacher,
        probe_size=32,
        criteria={('logits', 'logits'): dict(type='vim_mm.LogitsKL')})
    build_runner('cls', distiller, tmp_path / 'learns', iters=2,
                 custom_hooks=[dict(from_module(tmp_path), module='own')],
                 cfg=dict(model=distiller, default_scope='mmpretrain',
                          module_card=dict(licence='CC0-1.0'))).train()
    folder = tmp_path / 'learns/student'
    card = json.loads((folder / 'card.json').read_text())
    assert [part['name'] for part in card['parts']] == [
        'free', 'm', 'teacher', 'own']
    assert set(card['licence'].split(' AND ')) == {
        'CC0-1.0', 'MIT', LICENCE, 'BSD', 'not stated'}
    # a student of the student has them all
    student = dict(config=str(folder / 'student.py'),
                   checkpoint=str(folder / 'student.pth'))
    found = build_outside(student)
    assert found.card['licence'] == card['licence']
    assert [part['name'] for part in head_parts(found.network)] == ['own']


def test_one_task_of_several(tmp_path: Path) -> None:
    state = {f'models.{task}.head.weight': torch.zeros(1)
             for task in ('det', 'seg')}
    notes = {'models.det': [dict(name='m', licence=LICENCE)]}
    for task, kept in (('det', {'': notes['models.det']}), ('seg', {})):
        checkpoint = dict(state_dict=dict(state), meta={KEY: dict(notes)})
        assert task_checkpoint(checkpoint, task)
        assert checkpoint['meta'][KEY] == kept


@pytest.mark.parametrize('note', [
    3, 'm', ['m'], {'': 'm'}, {'': ['m']}, {'': [dict(name='m', licence=3)]},
    {'': [dict(licence='MIT')]}, {3: [None]}])  # yapf: disable
def test_notes_that_are_none_are_refused(tmp_path: Path,
                                         note: object) -> None:
    run = fused(tmp_path, 'run')
    file = tmp_path / 'damaged.pth'
    torch.save(
        dict(state_dict=run.model.state_dict(), meta={KEY: note}), file)
    with pytest.raises(ValueError, match='damaged.pth.* says in '
                       '`head_made_of` .* fetch or write it again'):
        baked(tmp_path, file)

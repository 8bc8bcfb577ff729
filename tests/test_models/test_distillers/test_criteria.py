"""Criteria as they stand in configs, and their weights in a run."""

from argparse import ArgumentParser

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

from vim_mm.models.distillers.criteria import (Criterion, read_criteria,
                                               read_weight, weigh)
from vim_mm.utils.config import add_cfg_options, read_config

KL = dict(type='vim_mm.LogitsKL', tau=2.)
TEXT = """
model = dict(
    type='vim_mm.Distiller',
    criteria={
        ('logits', 'logits'): dict(type='vim_mm.LogitsKL', tau=2.),
        ('backbone.layer4', 'backbone[3]'): [
            dict(type='vim_mm.CosineSmoothL1'),
            dict(type='vim_mm.LinearCKA')]})
"""
WANT = [(('logits', 'logits'), KL),
        (('backbone.layer4', 'backbone[3]'),
         dict(type='vim_mm.CosineSmoothL1')),
        (('backbone.layer4', 'backbone[3]'), dict(type='vim_mm.LinearCKA'))]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(TEXT)
    return path


def sorted_pairs(cfg: Config) -> list:
    return sorted(read_criteria(cfg.model.criteria), key=str)


def test_pairs_survive_a_dump(config, tmp_path):
    cfg = Config.fromfile(config)
    assert read_criteria(cfg.model.criteria) == WANT
    for turn in range(2):
        path = tmp_path / f'dumped_{turn}.py'
        cfg.dump(path)
        cfg = Config.fromfile(path)
        assert sorted_pairs(cfg) == sorted(WANT, key=str)


def test_a_config_that_inherits_changes_a_loss(config, tmp_path):
    path = tmp_path / 'heir.py'
    path.write_text("_base_ = 'config.py'\n"
                    "model = dict(criteria={('logits', 'logits'): "
                    'dict(tau=5., weight=3.)})')
    criteria = dict(read_criteria(Config.fromfile(path).model.criteria))
    assert criteria['logits', 'logits'] == dict(KL, tau=5., weight=3.)


def test_options_change_a_loss(config, tmp_path):
    text = TEXT.replace(
        "[\n            dict(type='vim_mm.CosineSmoothL1'),\n"
        "            dict(type='vim_mm.LinearCKA')]",
        "dict(type='vim_mm.LinearCKA')")
    config.write_text(text)
    parser = ArgumentParser()
    add_cfg_options(parser)
    options = parser.parse_args([
        '--cfg-options',
        'model.criteria.(logits,logits).tau=7',
        'model.criteria.(backbone.layer4, backbone[3]).weight=[1.,0.]',
        'model.criteria.(neck.a,neck.b.c).type=vim_mm.LinearCKA',
    ]).cfg_options
    cfg = read_config(str(config), options)
    path = tmp_path / 'dumped.py'
    for read in (cfg, (cfg.dump(path), Config.fromfile(path))[1]):
        criteria = dict(read_criteria(read.model.criteria))
        assert criteria['logits', 'logits'] == dict(KL, tau=7)
        assert criteria['backbone.layer4', 'backbone[3]'] == dict(
            type='vim_mm.LinearCKA', weight=[1., 0.])
        assert criteria['neck.a', 'neck.b.c'] == dict(type='vim_mm.LinearCKA')


@pytest.mark.parametrize('criteria, said', [
    ({('logits', 'logits'): []}, 'give {.student layer'),
    ({}, 'give {'),
    (None, 'give {'),
    ([dict(type='A')], 'give {'),
    ({'logits': KL}, "has the key 'logits'"),
    ({('logits', ): KL}, 'has the key'),
    ({('logits', 3): KL}, 'has the key'),
    ({('a', 'b', 'c'): KL}, 'has the key'),
    ({'(a.b': dict(c=KL)}, 'has the key'),
    ({'(a)': KL}, 'has the key'),
    ({('a', 'b'): 'LogitsKL'}, 'give a config'),
    ({('a', 'b'): [KL, 3]}, 'give a config'),
    ({('a', 'b'): dict(tau=3)}, 'has no `type`'),
    ({('a', 'b'): [KL], '(a,b)': dict(tau=3)}, 'give a config'),
])  # yapf: disable
def test_other_forms_are_refused(criteria, said):
    with pytest.raises(ValueError, match=said):
        read_criteria(criteria)


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    'weight', [-1, 'a', None, [1], [1, 2, 3], [1, -1],
               float('nan')])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(ValueError, match='weight'):
        read_weight(weight, 'weight')


def test_a_weight_changes_evenly_over_the_run():
    hub = MessageHub.get_instance('weights')
    pair = read_weight([2., 1.], 'weight')
    assert (weigh(0.5), weigh(pair)) == (0.5, 2.)
    hub.update_info('max_iters', 5)
    values = []
    for step in range(6):
        hub.update_info('iter', step)
        values.append(weigh(pair))
    assert values == [2., 1.75, 1.5, 1.25, 1., 1.]


# ------------------------------------------------------------------- shapes


def criterion(student, teacher, cfg=None) -> Criterion:
    shapes = [
        tuple(torch.zeros(s) for s in side) for side in (student, teacher)
    ]
    return Criterion(('a', 'b'), cfg or dict(type='vim_mm.CosineSmoothL1'),
                     *shapes, (56, 56))


@pytest.mark.parametrize('student, teacher, said', [
    ([(1, 4)] * 2, [(1, 4)] * 3, 'gives 2 outputs and'),
    ([(1, 140, 4)], [(1, 4, 4, 4)], r"\('a', 'b'\) cannot meet: 140 tokens"),
    ([(3, 4)], [(1, 4)], 'gives 3 rows and'),
])
def test_layers_that_cannot_meet_are_refused(student, teacher, said):
    with pytest.raises(ValueError, match=said):
        criterion(student, teacher)


@pytest.mark.parametrize('cfg, num', [
    (dict(type='vim_mm.CosineSmoothL1'), 1),
    (dict(type='vim_mm.LinearCKA'), 0),
    (dict(type='mmdet.MSELoss'), 1),
    (dict(type='vim_mm.LinearCKA',
          projector=dict(type='vim_mm.MLPProjector')), 1),
])
def test_widths_meet_by_a_projector_behind_the_student(cfg, num):
    built = criterion([(1, 6, 8, 8)], [(1, 17, 5)], cfg)
    assert len(built.projectors) == num
    student = torch.randn(2, 6, 8, 8, requires_grad=True)
    loss = built((student, ), (torch.randn(2, 17, 5), ), (56, 56))
    loss.backward()
    assert loss.dim() == 0 and student.grad.abs().sum() > 0
    for param in built.parameters():
        assert param.grad.abs().sum() > 0


def test_equal_widths_need_none_but_can_have_one():
    cfg = dict(type='vim_mm.CosineSmoothL1')
    assert not criterion([(1, 4)], [(1, 4)], cfg).projectors
    cfg['projector'] = dict(type='vim_mm.LinearProjector')
    assert len(criterion([(1, 4)] * 2, [(1, 4)] * 2, cfg).projectors) == 2


def test_levels_are_averaged_and_weighed():
    cfg = dict(type='mmdet.MSELoss', weight=3., loss_weight=2.)
    levels = [(2, 4, 4, 4), (2, 4, 2, 2)]
    built = criterion(levels, levels, cfg)
    student, teacher = (
        tuple(torch.randn(s) for s in levels) for _ in range(2))
    want = sum((a - b).square().mean() for a, b in zip(student, teacher)) / 2
    torch.testing.assert_close(built(student, teacher, (56, 56)), 6 * want)

"""Whole runs of distillation, and the students that they leave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from _distill import CRITERIA, FEATURES, build, distiller_cfg, network
from _tiny import (KINDS, SCOPES, SIZE, Pictures, build_runner, first_of, same,
                   snapshot)
from vim_mm.datasets import SoftOnly
from vim_mm.registry import DATASETS

SCHEDULED = {
    ('logits', 'logits'): dict(type='vim_mm.LogitsKL', weight=[1., 0.]),
    ('backbone.layer2', 'backbone[0]'): dict(FEATURES, weight=0.5)
}


class Joined(Pictures):
    """Pictures that can be joined with others."""

    def full_init(self) -> None:
        """All is there already."""


@pytest.fixture(autouse=True)
def registered():
    DATASETS.register_module(module=Joined, force=True)
    yield
    DATASETS.module_dict.pop('Joined')


class Stop(Hook):
    """Ends a run after three steps, as if somebody had stopped it."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         **kwargs) -> None:
        if batch_idx == 2:
            runner.train_loop._max_iters = 3


def pictures(kind: str, soft: bool = False) -> dict:
    data = dict(type='vim_mm.Joined', kind=kind)
    if soft:
        data = dict(type='vim_mm.SoftOnly', dataset=data)
    return data


def run_of(folder: Path, kind: str, iters: int = 6, **kwargs) -> Runner:
    """A run on pictures of which half are without annotations to learn."""
    model = distiller_cfg(folder.parent, kind, kwargs.pop('criteria'))
    model.update(kwargs.pop('model', {}))
    data = dict(
        type='ConcatDataset',
        datasets=[pictures(kind), pictures(kind, soft=True)])
    loader = dict(
        batch_size=4,
        dataset=data,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    return build_runner(
        kind, model, folder, iters, train_dataloader=loader, **kwargs)


def scalars(runner: Runner, name: str) -> torch.Tensor:
    history, _ = runner.message_hub.get_scalar(f'train/{name}').data
    return torch.as_tensor(history)


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_of_a_run_is_a_plain_model(tmp_path, kind):
    runner = run_of(
        tmp_path / 'run',
        kind,
        30,
        criteria=CRITERIA,
        model=dict(own_weight=0.),
        custom_hooks=[dict(type='EMAHook')])
    frozen = runner.model.outside['teacher'].network
    before = snapshot(frozen)
    runner.train()
    assert same(snapshot(frozen), before)
    for name in ('loss_kd_logits', 'loss_kd_backbone[0]'):
        curve = scalars(runner, name)
        assert curve[-5:].mean() < 0.9 * curve[:5].mean()

    state = torch.load(tmp_path / 'run/student/student.pth')['state_dict']
    cfg = network(kind)
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        model = ROOT.build(cfg).eval()
    model.load_state_dict(state)
    averaged = next(h for h in runner.hooks
                    if type(h).__name__ == 'EMAHook').ema_model.module
    batch = model.data_preprocessor(Pictures(kind, 2).batch())
    with torch.no_grad():
        got = model(batch['inputs'])
        want = averaged.eval()(batch['inputs'])
    torch.testing.assert_close(got, want, atol=0, rtol=0)


@pytest.mark.parametrize('kind, ema', first_of([('cls', False), ('det', True),
                                                ('seg', False)], 2))
def test_a_resumed_run_equals_a_straight_one(tmp_path, kind, ema):
    settings = dict(
        criteria=SCHEDULED,
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, end=6, by_epoch=False)
        ],
        custom_hooks=[dict(type='EMAHook')] * ema,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False,
                            interval=3)))
    whole = run_of(tmp_path / 'whole', kind, **settings)
    whole.train()
    stopped = run_of(tmp_path / 'parts', kind, **settings)
    stopped.register_hook(Stop())
    stopped.train()
    assert stopped.iter == 3
    resumed = run_of(tmp_path / 'parts', kind, resume=True, **settings)
    resumed.train()
    assert same(snapshot(whole.model), snapshot(resumed.model))
    saved = [
        torch.load(tmp_path / name / 'student/student.pth')['state_dict']
        for name in ('whole', 'parts')
    ]
    assert same(*saved)
    # weights go on where they stood, that of the logits to zero
    for name in ('loss_kd_logits', 'loss_kd_backbone.layer2'):
        curve = scalars(whole, name)
        assert len(curve) == 6
        assert torch.equal(curve[3:], scalars(resumed, name)[-3:])
    assert scalars(whole, 'loss_kd_logits')[-1] == 0


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_in_low_precision(tmp_path, kind):
    model = build(tmp_path, kind)
    batch = model.data_preprocessor(Pictures(kind, 4).batch(), True)
    want = model(**batch, mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        got = model(**batch, mode='loss')
    for key, value in got.items():
        if 'kd' in key:
            assert value.dtype == torch.float
            torch.testing.assert_close(value, want[key], atol=0.05, rtol=0.1)
    model.parse_losses(got)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize('classes, criteria, fits', [
    (['square'], CRITERIA, True),
    (['circle'], CRITERIA, False),
    (['square', 'circle'], CRITERIA, False),
    (['circle'], {
        ('neck[0]', 'neck[0]'): FEATURES
    }, True),
    (None, CRITERIA, True),
])
def test_a_teacher_of_other_classes_is_refused(tmp_path, classes, criteria,
                                               fits):
    model = distiller_cfg(tmp_path, 'cls', criteria)
    file = model.teacher.checkpoint
    state = torch.load(file)
    state['meta'] = dict(dataset_meta=dict(classes=classes))
    torch.save(state, file)
    model = build(tmp_path, 'cls', criteria, teacher=model.teacher)
    if fits:
        return model.check_data(Pictures.METAINFO)
    said = "(is 'square'|is None) .* 'circle' for the teacher"
    with pytest.raises(ValueError, match=said):
        model.check_data(Pictures.METAINFO)


def test_runs_look_at_the_classes_before_they_start(tmp_path):
    runner = run_of(tmp_path / 'run', 'cls', criteria=CRITERIA)
    runner.model.outside['teacher'].classes = ['circle']
    with pytest.raises(ValueError, match="'circle' for the teacher"):
        runner.train()
    assert runner.iter == 0


# ----------------------------------------------------------------- data sets


@pytest.mark.parametrize('kind', KINDS)
def test_soft_data_is_the_data_set_itself_but_marked(kind):
    whole = Joined(kind)
    soft = DATASETS.build(dict(type='vim_mm.SoftOnly', dataset=whole))
    assert len(soft) == len(whole) and soft.metainfo == whole.metainfo
    data, want = soft[3], whole[3]
    assert torch.equal(data['inputs'], want['inputs'])
    assert data['data_samples'].metainfo == dict(
        want['data_samples'].metainfo, soft_only=True)
    assert 'soft_only' not in want['data_samples']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('order', [[0, 1], [1, 0]])
def test_data_preprocessors_take_samples_without_annotation(kind, order):

    class Bare(Joined):

        def __getitem__(self, index: int) -> dict:
            data = super().__getitem__(index)
            sample = data['data_samples']
            if kind == 'det':  # as PackDetInputs does
                sample.gt_instances = InstanceData()
            else:
                delattr(sample, dict(cls='gt_label', seg='gt_sem_seg')[kind])
            return data

    with_masks = Joined(kind, 1)[0]
    if kind == 'det':
        with_masks['data_samples'].gt_instances.masks = BitmapMasks(
            np.zeros((1, SIZE, SIZE)), SIZE, SIZE)
    samples = [with_masks, SoftOnly(Bare(kind))[0]]
    samples = [samples[index] for index in order]
    model = network(kind)
    if kind == 'det':
        model.data_preprocessor.update(pad_mask=True, pad_size_divisor=40)
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        preprocessor = ROOT.build(model.data_preprocessor)
    batch = preprocessor(pseudo_collate(samples), True)
    assert [s.get('soft_only', False) for s in batch['data_samples']
            ] == [bool(index) for index in order]

"""A distiller's files are its student's, and its help stays outside."""

import json
from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS as ROOT
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from _tiny import DIMS, Pictures, model_cfg, same, snapshot, vit
from vim_mm.models.distillers import BaseDistiller, Outside, build_outside
from vim_mm.models.pixels import Normalizer, from_images, to_images
from vim_mm.registry import DATASETS, MODELS


class Helped(BaseDistiller):
    """The smallest distiller: one learned number, one frozen network."""

    def __init__(self, teacher=None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.help = nn.Linear(1, 1)
        self.stages = nn.BatchNorm1d(1)
        if teacher is not None:
            self.add_outside('teacher', build_outside(teacher))

    def loss(self, inputs, data_samples):
        losses = self.student(inputs, data_samples, mode='loss')
        losses['loss_help'] = self.stages(
            self.help(inputs.mean((1, 2, 3))[:, None])).square().mean()
        if 'teacher' in self.outside:
            teacher = self.outside['teacher'].on(inputs.device)
            with torch.no_grad():
                teacher(self.inputs_of('teacher', inputs, data_samples))
        return losses


@pytest.fixture(autouse=True)
def registered():
    MODELS.register_module(module=Helped, force=True)
    DATASETS.register_module(module=Pictures, force=True)
    yield
    MODELS.module_dict.pop('Helped')
    DATASETS.module_dict.pop('Pictures')


def plain(kind: str) -> dict:
    cfg = model_cfg(kind, {})
    cfg.backbone = vit(out_indices=[2])
    if kind == 'cls':
        cfg.neck = dict(type='mmpretrain.GlobalAveragePooling')
    if kind == 'det':
        cfg.neck = dict(
            type='mmdet.ChannelMapper', in_channels=[DIMS], out_channels=DIMS)
    return cfg


def helped(kind: str = 'cls', **kwargs) -> Helped:
    return MODELS.build(dict(type='Helped', student=plain(kind), **kwargs))


@pytest.mark.parametrize('kind', ['cls', 'det', 'seg'])
def test_the_state_dict_is_the_plain_students(kind):
    distiller, model = helped(kind), ROOT.build(plain(kind))
    for state in (distiller.state_dict(), get_state_dict(distiller)):
        assert list(state) == list(model.state_dict())
        model.load_state_dict(state)  # strict
    torch.nn.init.ones_(model.backbone.layers[0].ln1.weight)
    before = snapshot(distiller.help)
    assert not distiller.load_state_dict(model.state_dict()).missing_keys
    assert same(snapshot(distiller.student), snapshot(model))
    load_state_dict(distiller, model.state_dict(), strict=True)
    assert same(before, snapshot(distiller.help))


def test_versions_of_parts_travel_with_the_state_dict():
    state = helped('seg').state_dict()
    want = ROOT.build(plain('seg')).state_dict()._metadata
    assert {k: v for k, v in state._metadata.items() if k in want} == want


def test_averages_hold_a_student_and_share_what_is_outside():
    distiller = helped()
    distiller.add_outside('teacher', Outside(ROOT.build(plain('cls'))))
    averages = ExponentialMovingAverage(distiller)
    copied = averages.module
    assert copied.outside['teacher'] is distiller.outside['teacher']
    keys = [k for k in averages.state_dict() if k.startswith('module.')]
    assert keys == [f'module.{k}' for k in distiller.state_dict()]
    averages.load_state_dict(averages.state_dict())
    other = deepcopy(distiller)
    torch.nn.init.ones_(other.student.head.fc.weight)
    assert not same(other.state_dict(), distiller.state_dict())


def test_what_is_outside_is_frozen_and_no_part_of_the_model():
    distiller = helped()
    before = list(distiller.named_parameters())
    teacher = ROOT.build(plain('cls'))
    distiller.add_outside('teacher', Outside(teacher))
    distiller.train()
    assert len(list(distiller.named_parameters())) == len(before)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


def runner(work_dir, epochs, **kwargs) -> Runner:
    loader = dict(
        batch_size=4,
        dataset=dict(type='vim_mm.Pictures', kind='cls'),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    return Runner.from_cfg(
        Config(
            dict(
                default_scope='mmpretrain',
                model=dict(type='vim_mm.Helped', student=plain('cls')),
                work_dir=str(work_dir),
                train_dataloader=loader,
                train_cfg=dict(by_epoch=True, max_epochs=epochs),
                optim_wrapper=dict(
                    optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
                default_hooks=dict(
                    checkpoint=dict(type='CheckpointHook', interval=1)),
                randomness=dict(seed=0),
                **kwargs)))


def test_a_run_leaves_an_ordinary_model(tmp_path):
    run = runner(tmp_path, 1)
    run.train()
    folder = tmp_path / 'student'
    assert sorted(p.name for p in folder.iterdir()) == [
        'card.json', 'student.pth', 'student.py']
    cfg = Config.fromfile(folder / 'student.py')
    model = ROOT.build(cfg.model)
    saved = torch.load(folder / 'student.pth', weights_only=True)
    model.load_state_dict(saved['state_dict'])
    assert same(snapshot(model), snapshot(run.model.student))
    assert 'vim_mm' not in (folder / 'student.py').read_text()


def test_its_card_keeps_the_licences_of_what_it_learned_from(tmp_path):
    run = runner(
        tmp_path, 1, module_card=dict(dataset='squares', licence='CC0-1.0'))
    teacher = build_outside(
        dict(model=plain('cls')), 'teacher')
    teacher.card = dict(licence='CC BY-NC-SA 4.0', dataset='cells')
    run.model.add_outside('teacher', teacher)
    run.model.add_outside('other', build_outside(dict(model=plain('cls'))))
    run.train()
    card = json.loads((tmp_path / 'student/card.json').read_text())
    assert card['licence'] == 'CC0-1.0 AND CC BY-NC-SA 4.0 AND not stated'
    assert (card['dataset'], card['task']) == ('squares', 'cls')
    assert card['classes'] == ['square'] and card['num_params'] > 0
    assert [part['name'] for part in card['parts']] == ['teacher', 'other']


@pytest.mark.parametrize('ema', [False, True])
def test_a_resumed_run_equals_a_straight_one(tmp_path, ema):
    hooks = dict(custom_hooks=[dict(type='EMAHook')] if ema else [])
    straight = runner(tmp_path / 'straight', 2, **hooks)
    straight.train()
    runner(tmp_path / 'resumed', 1, **hooks).train()
    resumed = runner(tmp_path / 'resumed', 2, resume=True, **hooks)
    resumed.train()
    assert same(snapshot(straight.model), snapshot(resumed.model))
    saved = [
        torch.load(tmp_path / name / 'student/student.pth')['state_dict']
        for name in ('straight', 'resumed')
    ]
    assert same(*saved)
    assert ema != same(saved[0], dict(straight.model.state_dict()))


def test_a_student_alone_is_nothing_to_resume(tmp_path):
    runner(tmp_path, 1).train()
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint['distiller']
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match='holds a student alone'):
        runner(tmp_path, 2, resume=True).train()


def test_the_best_student_is_written(tmp_path):
    loader = dict(
        batch_size=4,
        dataset=dict(type='vim_mm.Pictures', kind='cls'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'))
    run = runner(
        tmp_path,
        2,
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=dict(type='mmpretrain.Accuracy'))
    hook = next(h for h in run.hooks if type(h).__name__ == 'CheckpointHook')
    hook.__init__(interval=1, save_best='accuracy/top1', rule='less')
    run.train()
    best = torch.load(
        run.message_hub.get_info('best_ckpt'),
        weights_only=False)['state_dict']
    written = torch.load(tmp_path / 'student/student.pth')['state_dict']
    assert same(best, written)


# ------------------------------------------------------------------- pixels

PREPROCESSORS = dict(
    cls=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True),
    cls_bgr=dict(
        type='mmpretrain.ClsDataPreprocessor', mean=[127.] * 3,
        std=[128.] * 3),
    det=dict(
        type='mmdet.DetDataPreprocessor',
        mean=[103.5, 116.3, 123.7],
        std=[1., 2., 3.],
        bgr_to_rgb=False,
        pad_size_divisor=14),
    seg=dict(
        type='mmseg.SegDataPreProcessor',
        mean=[0., 0., 0.],
        std=[255.] * 3,
        bgr_to_rgb=True,
        size=(28, 42)),
    grey=dict(type='mmdet.DetDataPreprocessor', mean=[60.], std=[60.]))


def prepared(name, images):
    data = Pictures(name.partition('_')[0].replace('grey', 'det')).batch()
    batch = dict(
        inputs=list(images), data_samples=data['data_samples'][:len(images)])
    return ROOT.build(PREPROCESSORS[name]), batch


@pytest.mark.parametrize('name', PREPROCESSORS)
def test_normalizer_does_as_the_data_preprocessor(name):
    images = torch.randint(0, 256, (2, 3, 28, 42)).byte()
    preprocessor, batch = prepared(name, images)
    want = preprocessor(batch, training=True)['inputs']
    normalizer = Normalizer.of(preprocessor)
    got = normalizer.normalize(to_images(images))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    back = normalizer.denormalize(want)
    assert torch.equal(from_images(back), images)


@pytest.mark.parametrize('own', PREPROCESSORS)
@pytest.mark.parametrize('other', PREPROCESSORS)
def test_converting_is_normalising_the_same_image_otherwise(own, other):
    images = torch.rand(2, 3, 8, 8)
    own, other = (
        Normalizer.of(ROOT.build(PREPROCESSORS[name]))
        for name in (own, other))
    inputs = own.normalize(images)
    got = own.convert(inputs, other)
    torch.testing.assert_close(
        got, other.normalize(images), atol=1e-4, rtol=1e-4)
    assert (got is inputs) == (own.normalize(images).equal(
        other.normalize(images)))


def test_padding_is_zero_for_both_and_both_can_read_the_size():
    student = plain('det')
    student.data_preprocessor = dict(
        type='mmdet.DetDataPreprocessor',
        mean=[60.] * 3,
        std=[60.] * 3,
        pad_size_divisor=4)
    teacher = plain('cls')
    teacher.data_preprocessor = dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[127.] * 3,
        std=[128.] * 3,
        pad_size_divisor=14)
    distiller = MODELS.build(dict(type='Helped', student=student))
    distiller.add_outside('teacher', Outside(ROOT.build(teacher)))
    data = Pictures('det', 1, 50).batch()
    batch = distiller.data_preprocessor(data, training=True)
    assert batch['inputs'].shape[-2:] == (56, 56)
    seen = distiller.inputs_of('teacher', **batch)
    assert not seen[:, :, 50:].any() and not seen[..., 50:].any()
    images = torch.stack(list(data['inputs'])).float()
    torch.testing.assert_close(
        seen[..., :50, :50], (images - 127) / 128, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('teacher, said', [
    (dict(config='a.py', model=plain('cls')), 'give `config`'),
    (dict(checkpoint='a.pth'), 'give `config`'),
    ('teacher.py', 'give a config'),
    (dict(
        model=dict(
            plain('cls'),
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'))),
     'how its images'),
])
def test_teachers_that_cannot_be_built_are_refused(teacher, said):
    with pytest.raises(ValueError, match=said):
        build_outside(teacher)


def test_a_teacher_of_another_model_is_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict=ROOT.build(plain('seg')).state_dict()), path)
    with pytest.raises(ValueError, match='lacks .* tensors of the model'):
        build_outside(dict(model=plain('cls'), checkpoint=str(path)))
    good = ROOT.build(plain('cls'))
    torch.save(dict(state_dict=good.state_dict()), path)
    built = build_outside(dict(model=plain('cls'), checkpoint=str(path)))
    assert same(snapshot(built.network), snapshot(good))

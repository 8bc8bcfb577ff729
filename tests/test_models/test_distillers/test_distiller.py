"""Distillation steps: who sees, learns and is left alone."""

from copy import deepcopy
from pathlib import Path
from typing import Optional

import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from torch import nn

from _distill import (CKA, CRITERIA, FEATURES, KL, build, faster_rcnn,
                      in_own_pixels, network, retinanet, teacher)
from _loading import lines
from _tiny import KINDS, NORMALISE, SCOPES, Pictures, same, snapshot
from vim_mm.models.distillers import Distiller, distiller, soft_only
from vim_mm.models.distillers.projectors import meet
from vim_mm.registry import MODELS
from vim_mm.utils.kinds import SOFT_ONLY

BACKBONE = {('backbone[0]', 'backbone[0]'): FEATURES}


def batch_of(distiller, kind: str, soft=()) -> dict:
    batch = distiller.data_preprocessor(Pictures(kind, 4).batch(), True)
    for index in soft:
        batch['data_samples'][index].set_metainfo({SOFT_ONLY: True})
    return batch


def step(distiller, batch) -> dict:
    losses = distiller(**batch, mode='loss')
    distiller.parse_losses(losses)[0].backward()
    return losses


def plain_loss(model, batch, scope) -> dict:
    with DefaultScope.overwrite_default_scope(scope):
        losses = model(**deepcopy(batch), mode='loss')
    if 'loss' in losses:
        losses['loss_own'] = losses.pop('loss')
    return losses


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('trunk', ['resnet', 'vit'])
@pytest.mark.parametrize('teaching', ['resnet', 'vit'])
def test_a_step_adds_what_its_equations_say(tmp_path, kind, trunk, teaching):
    distiller = build(
        tmp_path,
        kind,
        student=network(kind, trunk),
        teacher=teacher(tmp_path, kind,
                        in_own_pixels(kind, network(kind, teaching))))
    frozen = distiller.outside['teacher'].network
    before = snapshot(frozen)
    batch = batch_of(distiller.eval(), kind)
    losses = step(distiller, batch)
    own = plain_loss(distiller.student, batch, SCOPES[kind])
    extra = {k for k in losses if k not in own}
    for key, value in own.items():
        torch.testing.assert_close(losses[key], value)

    # the teacher alone, on the raw pictures in its own normalisation
    theirs = frozen.data_preprocessor(Pictures(kind, 4).batch())['inputs']
    with torch.no_grad():
        logits = frozen(theirs)
        features = frozen.backbone(theirs)[0]
    mine = distiller.student(batch['inputs'])
    if kind == 'det':
        logits, mine = logits[0][0], mine[0][0]
    size = theirs.shape[-2:]
    loss = MODELS.build(dict(KL, sigmoid=kind == 'det'))
    want = {'loss_kd_logits': loss(*meet(mine, logits, size))}
    mine = meet(distiller.student.backbone(batch['inputs'])[0], features, size)
    want['loss_kd_backbone[0]'] = MODELS.build(FEATURES)(*mine)
    want['loss_kd_backbone[0]#2'] = MODELS.build(CKA)(*mine)
    assert want.keys() == extra
    for key, value in want.items():
        torch.testing.assert_close(losses[key], value, atol=1e-5, rtol=1e-4)
    assert same(snapshot(frozen), before)
    assert not frozen.training and all(p.grad is None and not p.requires_grad
                                       for p in frozen.parameters())


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_reach_the_student_and_projectors_alone(tmp_path, kind):
    distiller = build(
        tmp_path,
        kind,
        own_weight=0.,
        criteria={
            ('backbone.layer2', 'backbone.layers.1'):
            dict(FEATURES, projector=dict(type='vim_mm.MLPProjector'))
        })
    frozen = distiller.outside['teacher'].network
    before = snapshot(frozen)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    held = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert held == {id(p) for p in distiller.parameters()}
    assert not held & {id(p) for p in frozen.parameters()}
    distiller.train()
    assert not any(m.training for m in frozen.modules())
    step(distiller, batch_of(distiller, kind))
    for name, param in distiller.named_parameters():
        if name.startswith(('student.backbone.layer1', 'criteria')):
            assert param.grad.abs().sum() > 0, name
        elif name.startswith('student.backbone.layer3'):
            assert not param.grad.any(), name
    optimizer.step()
    assert same(snapshot(frozen), before)
    names = dict(distiller.criteria.named_parameters())
    assert len(names) == 6 and not any('criteria' in key
                                       for key in distiller.state_dict())


def test_a_dry_run_leaves_the_student_as_it_was(tmp_path):
    distiller = build(tmp_path, 'seg')
    norms = [
        m for m in distiller.student.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert norms and all(norm.training for norm in norms)
    assert not any(norm.num_batches_tracked for norm in norms)


@pytest.mark.parametrize('make, criteria', [
    (lambda: network('det'), CRITERIA),
    (retinanet, CRITERIA),
    (lambda: network('det'), {
        ('bbox_head[2]', 'bbox_head[2]'): dict(type='mmdet.MSELoss')
    }),
    (retinanet, {
        ('bbox_head[1]', 'bbox_head[1]'): dict(type='mmdet.SmoothL1Loss')
    }),
    (faster_rcnn, {
        ('neck', 'neck'): FEATURES,
        ('rpn_head[0]', 'rpn_head[0]'): CKA,
        **BACKBONE
    }),
])
def test_detectors(tmp_path, make, criteria):
    distiller = build(
        tmp_path,
        'det',
        student=make(),
        criteria=criteria,
        teacher=teacher(tmp_path, 'det', make())).train()
    losses = step(distiller, batch_of(distiller, 'det'))
    added = {k for k in losses if k.startswith('loss_kd')}
    assert all(torch.isfinite(losses[k]) and losses[k] > 0 for k in added)
    assert len(added) >= len(criteria)


@pytest.mark.parametrize('student, other', [('det', 'cls'), ('seg', 'cls'),
                                            ('det', 'seg'), ('cls', 'det')])
def test_kinds_may_differ_in_features(tmp_path, student, other):
    distiller = build(
        tmp_path, student, criteria=BACKBONE, teacher=teacher(tmp_path, other))
    losses = step(distiller, batch_of(distiller, student))
    assert torch.isfinite(losses['loss_kd_backbone[0]'])


@pytest.mark.parametrize('kind', KINDS)
def test_every_network_reads_the_same_image(tmp_path, kind):
    """BGR with mean 60, RGB as CLIP, and what pipelines load."""
    pixels = {}
    for name in ('own', 'clip'):
        cfg = network(kind, 'vit')
        if name == 'clip':
            in_own_pixels(kind, cfg)
        distiller = build(tmp_path, kind, teacher=teacher(tmp_path, kind, cfg))
        seen = []
        frozen = distiller.outside['teacher'].network
        frozen.backbone.register_forward_pre_hook(
            lambda _, args: seen.append(args[0]))
        batch = batch_of(distiller, kind)
        step(distiller, batch)
        want = frozen.data_preprocessor(Pictures(kind, 4).batch())['inputs']
        torch.testing.assert_close(seen[-1], want, atol=1e-5, rtol=1e-5)
        pixels[name] = seen[-1]
    assert pixels['own'] is batch['inputs'] or torch.equal(
        pixels['own'], batch['inputs'])
    mean, std = (
        torch.tensor(NORMALISE[k])[:, None, None] for k in ('mean', 'std'))
    assert (pixels['clip'] - pixels['own']).abs().max() > 0.3
    clip = pixels['clip'] * torch.tensor(
        [68.501, 66.632, 70.323])[:, None, None] + torch.tensor(
            [122.771, 116.746, 104.094])[:, None, None]
    torch.testing.assert_close(
        clip.flip(1), pixels['own'] * std + mean, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('weight', [1., 0.3])
def test_own_losses_are_weighed_and_all_are_logged(tmp_path, kind, weight):
    distiller = build(tmp_path, kind, own_weight=weight).eval()
    batch = batch_of(distiller, kind)
    total, logged = distiller.parse_losses(distiller(**batch, mode='loss'))
    own = distiller.student.parse_losses(
        plain_loss(distiller.student, batch, SCOPES[kind]))[0]
    added = sum(v for k, v in logged.items() if 'kd' in k)
    torch.testing.assert_close(total, weight * own + added)
    assert logged['loss'] == total


# ---------------------------------------------------------------- soft only


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('soft', [[0], [1, 3], [0, 1, 2]])
def test_soft_images_have_no_own_loss(tmp_path, kind, soft):
    distiller = build(tmp_path, kind).eval()
    whole = step(distiller, batch_of(distiller, kind))
    batch = batch_of(distiller, kind, soft)
    losses = step(distiller, batch)
    for key in ('loss_kd_logits', 'loss_kd_backbone[0]'):
        torch.testing.assert_close(losses[key], whole[key])
    hard = [i for i in range(4) if i not in soft]
    rest = dict(
        inputs=batch['inputs'][hard],
        data_samples=[batch['data_samples'][i] for i in hard])
    own = plain_loss(distiller.student, rest, SCOPES[kind])
    total, _ = distiller.parse_losses({
        k: v
        for k, v in losses.items() if k in own
    })
    torch.testing.assert_close(total, distiller.student.parse_losses(own)[0])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('annotated', [True, False])
def test_a_batch_of_soft_images_alone(tmp_path, kind, annotated):
    distiller = build(tmp_path, kind).train()
    batch = batch_of(distiller, kind, range(4))
    field = dict(cls='gt_label', det='gt_instances', seg='gt_sem_seg')[kind]
    if not annotated:
        for sample in batch['data_samples']:
            delattr(sample, field)
    losses = step(distiller, batch)
    own = {k: v for k, v in losses.items() if 'loss' in k and 'kd' not in k}
    assert own and not any(
        part.any() for value in own.values()
        for part in (value if isinstance(value, list) else [value]))
    assert losses['loss_kd_logits'] > 0
    for name, param in distiller.named_parameters():  # as DDP needs it
        assert param.grad is not None, name
    for sample in batch['data_samples']:
        assert (field in sample) == annotated


@pytest.mark.parametrize('soft', [[1], [0, 1, 2, 3]])
def test_soft_images_of_a_two_stage_detector(tmp_path, soft):
    distiller = build(
        tmp_path, 'det', student=faster_rcnn(), criteria=BACKBONE).train()
    losses = step(distiller, batch_of(distiller, 'det', soft))
    own = distiller.parse_losses({
        k: v
        for k, v in losses.items() if 'kd' not in k
    })[0]
    assert torch.isfinite(own) and (own == 0) == (len(soft) == 4)
    for name, param in distiller.named_parameters():
        assert param.grad is not None, name


def test_heads_that_do_not_see_soft_images_are_refused(tmp_path):
    cfg = faster_rcnn()
    distiller = build(
        tmp_path,
        'det',
        student=cfg,
        criteria={('rpn_head[0]', 'rpn_head[0]'): FEATURES},
        teacher=teacher(tmp_path, 'det', cfg))
    with pytest.raises(ValueError, match='one for each image of a batch'):
        step(distiller, batch_of(distiller, 'det', [1]))


def test_blank_samples_of_masks():
    model = build_plain(faster_rcnn())
    sample = Pictures('det', 1)[0]['data_samples']
    inputs = torch.zeros(1, 3, 8, 9)
    assert 'masks' not in soft_only.blank(model, sample, inputs).gt_instances
    model.roi_head.mask_head = model.roi_head.bbox_head
    masks = soft_only.blank(model, sample, inputs).gt_instances.masks
    assert isinstance(masks, BitmapMasks) and masks.masks.shape == (0, 8, 9)
    assert len(sample.gt_instances) == 1


def build_plain(cfg: dict):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return ROOT.build(cfg)


# ------------------------------------------------------------------- errors


def three_classes(kind: str):
    cfg = network(kind, 'vit')
    head = dict(cls='head', det='bbox_head', seg='decode_head')[kind]
    cfg[head].num_classes = 3
    return cfg


@pytest.mark.parametrize('kind, classes', [('cls', 2), ('det', 1), ('seg', 2)])
def test_logits_of_other_classes_are_refused(tmp_path, kind, classes):
    other = teacher(tmp_path, kind, three_classes(kind))
    with pytest.raises(
            ValueError, match=f'scores {classes} classes and the '
            'teacher 3, so'):
        build(tmp_path, kind, teacher=other)
    assert build(tmp_path, kind, criteria=BACKBONE, teacher=other)


def anchors(num: int):
    cfg = retinanet()
    cfg.bbox_head.anchor_generator.ratios = [1.] * num
    return cfg


def multi_label():
    cfg = network('cls')
    cfg.head.update(loss=dict(type='CrossEntropyLoss', use_sigmoid=True))
    return cfg


def fixed_size():
    return dict(
        type='mmpretrain.TimmClassifier',
        model_name='vit_tiny_patch16_224',
        num_classes=2,
        depth=1,
        embed_dim=8,
        num_heads=1,
        data_preprocessor=dict(NORMALISE))


@pytest.mark.parametrize('kind, other, kwargs, said', [
    ('det', lambda: anchors(3), dict(student=anchors(2)),
     'gives 2 scores and the teacher 3'),
    ('cls', multi_label, {}, 'one class of all and the teacher each class'),
    ('det', faster_rcnn, {}, "teacher FasterRCNN has no 'logits'"),
    ('det', None, dict(student=faster_rcnn()),
     "student FasterRCNN has no 'logits'"),
    ('cls', fixed_size, dict(criteria={('logits', 'logits'): KL}),
     'set `probe_size`'),
    ('cls', None, dict(probe_size=0), 'probe_size'),
    ('cls', None, dict(own_weight=-1), 'own_weight'),
    ('cls', None, dict(criteria={('backbone[0]', 'nothing'): FEATURES}),
     "teacher ImageClassifier has no layer 'nothing'"),
    ('cls', None, dict(criteria={('backbone[0]', 'head.loss_module'): KL}),
     "teacher's layer 'head.loss_module' does not run"),
    ('cls', None,
     dict(
         criteria={('neck[0]', 'backbone'): KL},
         student=network('cls', neck=None)),
     "student ImageClassifier has no layer 'neck'"),
    *[('cls', None, dict(criteria={(layer, layer): dict(type=loss)}),
       f'{loss.split(".")[1]} compares class scores, and .*{layer[:4]}')
      for layer, loss in (
          ('backbone[0]', 'vim_mm.LogitsKL'), ('neck', 'vim_mm.LogitsKL'),
          ('neck', 'mmdet.KnowledgeDistillationKLDivLoss'))],
    ('det', None, dict(criteria={('bbox_head[1]', 'bbox_head[1]'): KL}),
     'LogitsKL compares class scores, and'),
    *[(kind, None, dict(criteria={('logits', 'logits'): loss}), said)
      for kind, loss, said in (
          ('cls', dict(type='mmpretrain.CrossEntropyLoss'),
           'CrossEntropyLoss compares scores with labels, and'),
          ('det', dict(type='vim_mm.LogitsKL', sigmoid=False),
           'LogitsKL takes the softmax of one class'),
          ('det', dict(type='mmdet.KnowledgeDistillationKLDivLoss', T=2),
           'KLDivLoss takes the softmax of one class'))],
    *[('cls', None, dict(criteria={pair: FEATURES}), said) for pair, said in (
        (('backbone[0]', 'logits'), "'backbone.0.' gives features, .* class"),
        (('head.fc', 'neck'), "'head.fc' gives class scores, .* features"))],
])
def test_mistakes_are_one_sentence(tmp_path, kind, other, kwargs, said):
    if other is not None:
        kwargs = dict(kwargs, teacher=teacher(tmp_path, kind, other()))
    with pytest.raises(ValueError, match=said) as caught:
        build(tmp_path, kind, **kwargs)
    assert str(caught.value).count('. ') == 0


def test_a_teacher_of_other_grey_levels_is_refused(tmp_path):
    cfg = network('cls', 'vit')
    cfg.data_preprocessor.update(mean=[.485, .456, .406],
                                 std=[.229, .224, .225])
    with pytest.raises(ValueError, match='teacher has means of up to 0.485'):
        build(tmp_path, 'cls', teacher=teacher(tmp_path, 'cls', cfg))


def test_a_teacher_without_normaliser_is_refused(tmp_path):
    cfg = network('cls', 'vit')
    for key in ('mean', 'std'):
        del cfg.data_preprocessor[key]
    with pytest.raises(ValueError, match='does not say how its images'):
        build(tmp_path, 'cls', teacher=teacher(tmp_path, 'cls', cfg))


def test_other_modes_are_the_students(tmp_path):
    distiller = build(tmp_path, 'cls').eval()
    assert isinstance(distiller, Distiller)
    batch = batch_of(distiller, 'cls')
    want = distiller.student(**deepcopy(batch), mode='predict')
    got = distiller(**batch, mode='predict')
    assert all(
        torch.equal(a.pred_score, b.pred_score) for a, b in zip(got, want))


def test_rates_of_parts_do_not_reach_projectors(tmp_path):
    """`custom_keys` are looked for anywhere in a parameter's name."""
    distiller = build(
        tmp_path,
        'cls',
        criteria={
            ('backbone.layer2', 'backbone[0]'): [FEATURES, FEATURES],
            ('backbone.layer1', 'backbone[0]'): FEATURES
        })
    wrapper = build_optim_wrapper(
        distiller,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=1.),
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))))
    rates = {
        id(group['params'][0]): group['lr']
        for group in wrapper.optimizer.param_groups
    }
    for name, param in distiller.named_parameters():
        slow = name.startswith('student.backbone.')
        assert rates[id(param)] == pytest.approx(0.1 if slow else 1.), name
    names = [
        k for k in step(distiller, batch_of(distiller, 'cls')) if 'kd' in k
    ]
    assert names == [
        'loss_kd_backbone.layer2', 'loss_kd_backbone.layer2#2',
        'loss_kd_backbone.layer1'
    ]


@pytest.mark.parametrize('kind, criteria', [
    ('cls', {('head.fc', 'logits'): KL}),
    ('cls', {('logits', 'logits'): FEATURES}),
    ('det', {('bbox_head[0]', 'bbox_head[0]'): KL}),
    ('seg', {('decode_head.conv_seg', 'logits'): KL}),
    ('cls', {('logits', 'logits'): dict(
        type='mmdet.KnowledgeDistillationKLDivLoss')}),
])
def test_class_scores_by_other_names(tmp_path, kind, criteria):
    """Their loss counts, one of a library's too."""
    model = build(tmp_path, kind, criteria)
    data = model.data_preprocessor(Pictures(kind, 2).batch(), True)
    losses = model(**data, mode='loss')
    kd, = (value for key, value in losses.items() if 'loss_kd' in key)
    assert kd > 0


@pytest.mark.parametrize(('given', 'told'), [
    ({}, True),  # of the trunk alone
    (dict(head=dict(init_cfg=dict(type='Pretrained', checkpoint='F'))), False),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='F')), False),
    (None, False),
])
@pytest.mark.parametrize('layer', ['logits', 'backbone[0]'])
def test_a_teacher_whose_checkpoint_was_forgotten(
        given: Optional[dict], told: bool, layer: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of its trunk are not those of its head."""
    taught = teacher(tmp_path, 'cls')
    if given is not None:
        file = taught['checkpoint']
        start = dict(type='Pretrained', checkpoint=file, prefix='backbone.')
        model = ConfigDict(taught['model'])
        model.backbone.init_cfg = start
        for key, value in given.items():
            if key == 'init_cfg':
                model.init_cfg = dict(value, checkpoint=file)
            else:
                model[key].init_cfg = dict(
                    value['init_cfg'], checkpoint=file, prefix=f'{key}.')
        taught = dict(model=model)
    said = lines(monkeypatch, distiller)
    build(tmp_path, 'cls', {(layer, layer): KL if layer == 'logits'
                            else FEATURES}, teacher=taught)
    assert [f"no weights for ['{layer}']" in each for each in said] == [
        True] * (told and layer == 'logits')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ONNX file of a model, which computes what the model does."""

import json
import runpy
import sys
from pathlib import Path

import onnx
import pytest
import torch
from _export import (CLASSES, HEADS, build, classifier, detector, segmentor,
                     whole_config, write_images)
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn

from _tiny import (DIMS, KINDS, NORMALISE, SCOPES, TRUNKS, add_modules, fill,
                   first_of, fusion_neck, model_cfg, vit)
from vim_mm.apis import export_model, export_onnx
from vim_mm.apis.export import latency
from vim_mm.models.export import OnnxModel
from vim_mm.models.moe.moe_layer import MoELayer
from vim_mm.registry import MODELS

SCRIPT = Path(__file__).parents[2] / 'tools/export.py'
PLAIN = dict(cls=classifier, det=detector, seg=segmentor)


def predictions(model, cfg, images: list, batch_size: int = 1) -> list:
    """What the model itself says of images."""
    stages = [
        stage for stage in cfg.test_dataloader.dataset.pipeline
        if 'Annotation' not in stage.type
    ]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        read = Compose(stages)
        data = [
            read(dict(img_path=path, img_id=index, sample_idx=index))
            for index, path in enumerate(images)
        ]
        return [
            sample for start in range(0, len(data), batch_size)
            for sample in model.test_step(
                pseudo_collate(data[start:start + batch_size]))
        ]


def check_same(kind: str, found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert type(ours) is type(theirs)
        if kind == 'cls':
            torch.testing.assert_close(
                ours.pred_score, theirs.pred_score, rtol=1e-4, atol=1e-5)
            assert torch.equal(ours.pred_label, theirs.pred_label)
        elif kind == 'seg':
            ours, theirs = ours.pred_sem_seg.data, theirs.pred_sem_seg.data
            assert ours.shape == theirs.shape
            assert (ours != theirs).float().mean() < 1e-3
        else:
            ours, theirs = ours.pred_instances, theirs.pred_instances
            assert len(ours) == len(theirs) > 0
            assert torch.equal(ours.labels, theirs.labels)
            for name in ('scores', 'bboxes'):
                torch.testing.assert_close(
                    ours[name], theirs[name], rtol=1e-3, atol=5e-3)


# ------------------------------------------------------------------ all kinds


@pytest.mark.parametrize('kind', PLAIN)
def test_a_file_predicts_what_its_model_does(kind, tmp_path):
    model, cfg = build(kind, PLAIN[kind]())
    images = write_images(tmp_path)
    done = export_model(model, cfg, tmp_path / 'model.onnx')
    # one file, and no trace of others
    assert [p.name for p in tmp_path.glob('*onnx*')] == ['model.onnx']
    assert done.any_size and max(done.differences.values()) < 1e-4
    shapes = [tuple(map(int, s.split(' x '))) for s in done.differences]
    assert len({s[0] for s in shapes}) == len({s[2:] for s in shapes}) == 2

    file = onnx.load(done.file)
    assert [o.version for o in file.opset_import if not o.domain
            ] == [done.opset] == [17]
    about = {p.key: p.value for p in file.metadata_props}
    assert about['kind'] == kind and about['channels'] == 'rgb'
    assert json.loads(about['classes']) == list(CLASSES)
    assert json.loads(about['mean']) == NORMALISE['mean']
    assert json.loads(about['std']) == NORMALISE['std']
    dims = file.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in dims] == ['batch', '', 'height', 'width']

    served = OnnxModel(done.file)
    check_same(kind, served.infer(images), predictions(model, cfg, images))
    times = latency(model, done.file, repeats=2)
    assert set(times) == {'torch', 'onnx'} and min(times.values()) > 0


@pytest.mark.parametrize('kind', PLAIN)
def test_images_of_several_sizes_in_a_batch(kind, tmp_path):
    model, cfg = build(kind, PLAIN[kind]())
    images = write_images(tmp_path)
    served = OnnxModel(
        export_model(model, cfg, tmp_path / 'model.onnx').file)
    check_same(kind, served.infer(images, batch_size=3),
               predictions(model, cfg, images, batch_size=3))


def test_a_config_tests_a_file(tmp_path):
    """It is a model like others to a runner's test loop."""
    model, cfg = build('cls', classifier())
    file = export_model(model, cfg, tmp_path / 'model.onnx').file
    init_default_scope('mmpretrain')
    served = MODELS.build(dict(type='vim_mm.OnnxModel', file=str(file)))
    data = dict(inputs=[torch.zeros(3, 96, 96, dtype=torch.uint8)] * 2)
    samples = served.test_step(data)
    assert [len(s.pred_score) for s in samples] == [3, 3]
    with pytest.raises(ValueError, match='does not learn'):
        served(torch.zeros(1, 3, 96, 96), mode='loss')


# ---------------------------------------------------------------- classifiers


@pytest.mark.parametrize('name, channels', [
    ('vit', DIMS), ('swin', 64), ('convnext', 16), ('resnet', 64)])
def test_trunks_take_any_size(name, channels, tmp_path):
    model, cfg = build('cls', classifier(TRUNKS[name], channels))
    done = export_model(model, cfg, tmp_path / 'model.onnx')
    assert done.any_size
    session = OnnxModel(done.file)
    for size in ((70, 98), (97, 61), (128, 96)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(
            torch.from_numpy(session(x)['scores']),
            model(x, mode='tensor').softmax(1), rtol=1e-4, atol=1e-5)


def test_classes_beside_each_other(tmp_path):
    head = dict(type='mmpretrain.MultiLabelLinearClsHead', thr=0.45)
    model, cfg = build('cls', classifier(**head))
    images = write_images(tmp_path)
    served = OnnxModel(
        export_model(model, cfg, tmp_path / 'model.onnx').file)
    assert served.about['activation'] == 'sigmoid'
    check_same('cls', served.infer(images), predictions(model, cfg, images))


class Last(nn.Module):

    def forward(self, x):
        return x[-1]


class Alone(nn.Module):

    def forward(self, x):
        return (x, )


def test_a_model_of_one_size_is_exported_for_that(tmp_path):
    """A batch of any number it still takes."""
    model, cfg = build('cls', classifier(), size=160)
    model.head.fc = nn.Linear(1280 * 25, 3)
    model.neck = nn.Sequential(Last(), nn.Flatten(), Alone())
    done = export_model(model, cfg, tmp_path / 'model.onnx')
    assert not done.any_size
    served = OnnxModel(done.file)
    assert served(torch.randn(5, 3, 160, 160))['scores'].shape == (5, 3)


# ---------------------------------------------------------- modules and fusion


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('place', ['fused', 'baked'])
def test_fused_and_baked_modules_are_exported(kind, place, tmp_path):
    """Modules in the trunk, weighed by a fusion or folded into one."""
    trunk = vit(img_size=98)
    neck = fusion_neck(kind)
    cfg = whole_config(
        kind, model_cfg(kind, dict(trunk=trunk), neck), size=98)
    init_default_scope(SCOPES[kind])
    model = MODELS.build(cfg.model)
    add_modules(model.backbone, 'a', 'b')
    model.backbone.set_fusion(dict(type='EnsMoE'))
    fill(model.backbone.fusion, 1.)
    if place == 'baked':
        model.backbone.merge('folded')
    model.eval()
    done = export_model(model, cfg, tmp_path / 'model.onnx')
    assert done.any_size and max(done.differences.values()) < 1e-4


def test_pruned_experts_are_exported(tmp_path):
    backbone = dict(
        type='vim_mm.MoEDaViT',
        arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1, 2, 2, 2]),
        num_experts=4,
        k=2)
    model, cfg = build('cls', classifier(backbone, 64), size=64)
    whole = export_model(model, cfg, tmp_path / 'whole.onnx')
    for part in model.modules():
        if isinstance(part, MoELayer):
            part.keep([1, 2])
    pruned = export_model(model, cfg, tmp_path / 'pruned.onnx')
    assert pruned.any_size and pruned.megabytes < whole.megabytes


# ------------------------------------------------------------------ detectors


# boxes of yolof's coder outside of the image are far apart
IN_GRAPH = [h for h in HEADS if h not in ('ssd', 'yolof_coder')]
BESIDE = ['yolof_coder', *IN_GRAPH]


@pytest.mark.parametrize('head, boxes', first_of(
    [*((h, True) for h in IN_GRAPH), *((h, False) for h in BESIDE)],
    len(IN_GRAPH) + 2))
def test_boxes_are_those_of_the_detector(head, boxes, tmp_path):
    # scores apart: of those that are equal but for rounding any may stay
    std = 0.05 if 'Retina' in HEADS[head]['type'] else 0.1
    model, cfg = build('det', detector(head), std=std)
    images = write_images(tmp_path)
    done = export_model(model, cfg, tmp_path / 'model.onnx', boxes=boxes)
    assert done.any_size
    assert (done.outputs[0] == 'bboxes') is boxes
    served = OnnxModel(done.file)
    check_same('det', served.infer(images), predictions(model, cfg, images))


@pytest.mark.parametrize('test_cfg', first_of([
    dict(nms_pre=3), dict(score_thr=0.5), dict(score_thr=0.99),
    dict(max_per_img=2), dict(nms=dict(type='nms', iou_threshold=0.9)),
    dict(nms=dict(type='nms', iou_threshold=0.3, class_agnostic=True)),
    dict(min_bbox_size=4)
], 2), ids=str)
def test_boxes_follow_the_settings(test_cfg, tmp_path):
    model, cfg = build('det', detector('fcos', **test_cfg), std=0.1)
    images = write_images(tmp_path)
    for boxes in (False, True):
        if boxes and 'min_bbox_size' in test_cfg:
            continue
        served = OnnxModel(
            export_model(
                model, cfg, tmp_path / 'model.onnx', boxes=boxes).file)
        expected = predictions(model, cfg, images)
        found = served.infer(images)
        if 'score_thr' in test_cfg and not len(expected[0].pred_instances):
            assert not len(found[0].pred_instances)
            continue
        check_same('det', found, expected)


# ----------------------------------------------------------------- segmentors


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('num_classes', [2, 3])
def test_labels_of_pixels(num_classes, align_corners, tmp_path):
    extra = dict(out_channels=1, threshold=0.4, loss_decode=dict(
        type='CrossEntropyLoss', use_sigmoid=True)) if num_classes == 2 else {}
    model, cfg = build(
        'seg', segmentor(num_classes, align_corners=align_corners, **extra))
    images = write_images(tmp_path)
    served = OnnxModel(
        export_model(model, cfg, tmp_path / 'model.onnx').file)
    check_same('seg', served.infer(images), predictions(model, cfg, images))


# ------------------------------------------------------------------- mistakes


def two_stage() -> tuple:
    cfg = Config.fromstring(
        "_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'", '.py')
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    return build('det', cfg.model)


def changed(kind: str, **change) -> tuple:
    return build(kind, ConfigDict(PLAIN[kind](), **change))


@pytest.mark.parametrize('make, message', [
    (two_stage, r'FasterRCNN cannot be exported because of its `rpn_head`'),
    (lambda: build('det', detector('retina', nms=dict(
        type='soft_nms', iou_threshold=0.5))),
     'RetinaHead has `test_cfg.nms`'),
    (lambda: changed('det', bbox_head=dict(
        type='mmdet.GFLHead', stacked_convs=1, num_classes=3,
        in_channels=16, feat_channels=32, norm_cfg=None, loss_dfl=dict(
            type='mmdet.DistributionFocalLoss'),
        anchor_generator=HEADS['atss']['anchor_generator'])),
     'GFLHead has a `_predict_by_feat_single` of its own'),
    (lambda: changed('seg', test_cfg=dict(
        mode='slide', crop_size=(64, 64), stride=(32, 32))),
     'slides a window'),
    (lambda: changed('cls', head=dict(
        type='mmpretrain.MultiTaskHead', in_channels=1280,
        task_heads=dict(x=dict(type='mmpretrain.LinearClsHead',
                               num_classes=2)))), 'MultiTaskHead'),
])
def test_what_cannot_be_exported_is_named(make, message, tmp_path):
    model, cfg = make()
    with pytest.raises(ValueError, match=message):
        export_model(model, cfg, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


class Unknown(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x):
        return (*x[:-1], torch.linalg.qr(x[-1])[0] * torch.special.i1(x[-1]))


class Endless(nn.Module):

    def forward(self, x):
        return (*x[:-1], x[-1] / 0)


@pytest.mark.parametrize('part, message', [
    (Unknown, 'does not go into a graph'), (Endless, 'not finite')])
def test_a_wrong_graph_leaves_no_file(part, message, tmp_path):
    model, cfg = build('cls', classifier())
    model.neck = nn.Sequential(part(), model.neck)
    (tmp_path / 'model.onnx').write_text('older')
    with pytest.raises(ValueError, match=message):
        export_model(model, cfg, tmp_path / 'model.onnx')
    assert (tmp_path / 'model.onnx').read_text() == 'older'
    assert len(list(tmp_path.iterdir())) == 1


def test_another_number_of_images_is_compared(tmp_path):
    """A batch size that a trace makes a constant of is found."""
    model, cfg = build('cls', classifier())

    class Fixed(nn.Module):

        def forward(self, x):
            last = x[-1] * float(int(x[-1].shape[0]) + 1)
            return (*x[:-1], last)

    model.neck = nn.Sequential(Fixed(), model.neck)
    with pytest.raises(ValueError, match="differs from PyTorch's by"):
        export_model(model, cfg, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['model.pt', 'nowhere/model.onnx'])
def test_names_of_files(name, tmp_path):
    model, cfg = build('cls', classifier())
    with pytest.raises(ValueError, match='ends in .onnx'):
        export_model(model, cfg, tmp_path / name)


def test_files_that_are_none_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match='no ONNX file'):
        OnnxModel(tmp_path / 'model.onnx')
    (tmp_path / 'model.onnx').write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='cannot be run'):
        OnnxModel(tmp_path / 'model.onnx')
    torch.onnx.export(
        nn.Linear(1, 1), (torch.zeros(1, 1), ),
        str(tmp_path / 'other.onnx'),
        dynamo=False)
    with pytest.raises(ValueError, match='vim-mm export'):
        OnnxModel(tmp_path / 'other.onnx')


# ----------------------------------------------------------------------- tool


def test_the_tool(tmp_path, monkeypatch, capsys):
    model, cfg = build('det', detector())
    cfg.dump(tmp_path / 'cfg.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    argv = [
        str(SCRIPT), *(str(tmp_path / name)
                       for name in ('cfg.py', 'model.pth', 'model.onnx'))
    ]
    monkeypatch.setattr(sys, 'argv', argv + ['--size', '64', '96'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name='__main__')
    assert not end.value.code
    told = capsys.readouterr().out
    assert 'MB, opset 17' in told and 'one image' in told
    assert 'images of 1 x 3 x 64 x 96' in told
    again = export_onnx(
        str(tmp_path / 'cfg.py'),
        str(tmp_path / 'model.pth'),
        tmp_path / 'again.onnx',
        size=(64, 96))
    assert again.file.read_bytes() == (tmp_path / 'model.onnx').read_bytes()

"""Layers by name, in every library, in training as in a pass alone."""

import pytest
import torch
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from _distill import faster_rcnn, network, resnet, retinanet
from _tiny import DIMS, SCOPES, SIZE, Pictures
from vim_mm.models.distillers.heads import kind_of, logits_of
from vim_mm.models.distillers.layers import LayerReader


def yolox() -> dict:
    cfg = network('det', type='mmdet.YOLOX')
    cfg.bbox_head = dict(
        type='mmdet.YOLOXHead',
        num_classes=1,
        in_channels=DIMS,
        feat_channels=16,
        stacked_convs=1,
        strides=[16])
    cfg.train_cfg = dict(assigner=dict(type='mmdet.SimOTAAssigner'))
    return cfg


def ssd() -> dict:
    """Its classes exclude each other, and every place has anchors."""
    cfg = retinanet()
    cfg.type = 'mmdet.SingleStageDetector'
    cfg.bbox_head = dict(
        type='mmdet.SSDHead',
        num_classes=1,
        in_channels=[DIMS],
        anchor_generator=dict(
            type='mmdet.SSDAnchorGenerator',
            scale_major=False,
            input_size=SIZE,
            basesize_ratio_range=(0.3, 0.9),
            strides=[16],
            ratios=[[2]],
            min_sizes=[16],
            max_sizes=[32]))
    cfg.train_cfg.update(neg_pos_ratio=3, smoothl1_beta=1.)
    return cfg


def timm() -> dict:
    return dict(
        type='mmpretrain.TimmClassifier',
        model_name='resnet10t',
        num_classes=2)


def cascade() -> dict:
    cfg = network('seg', type='mmseg.CascadeEncoderDecoder', num_stages=2)
    second = dict(
        type='mmseg.OCRHead',
        in_channels=DIMS,
        in_index=-1,
        channels=8,
        ocr_channels=4,
        dropout_ratio=0,
        num_classes=2,
        norm_cfg=dict(type='BN'))
    cfg.decode_head = [cfg.decode_head, second]
    return cfg


def deep_supervision() -> dict:
    cfg = network('seg')
    cfg.auxiliary_head = [dict(cfg.decode_head)]
    return cfg


#: Networks, one of their layers beside the logits, and scores at a place.
NETWORKS = dict(
    cls=(lambda: network('cls'), 'head.fc', 2),
    vit=(lambda: network('cls', 'vit'), 'backbone.layers.1', 2),
    timm=(timm, 'model.layer2', 2),
    seg=(lambda: network('seg'), 'decode_head.conv_seg', 2),
    cascade=(cascade, 'backbone.layer3', 2),
    deep=(deep_supervision, 'auxiliary_head.0', 2),
    fcos=(lambda: network('det'), 'bbox_head[2][0]', 1),
    retinanet=(retinanet, 'bbox_head.retina_cls', 2),
    yolox=(yolox, 'bbox_head[1]', 1),
    ssd=(ssd, 'neck[0]', 8))


def built(cfg: dict) -> torch.nn.Module:
    scope = cfg['type'].split('.')[0]
    with DefaultScope.overwrite_default_scope(scope):
        model = ROOT.build(cfg)
    return model.eval()


def batch_of(model: torch.nn.Module) -> dict:
    data = Pictures(kind_of(model), 4).batch()
    return model.data_preprocessor(data, True)


@pytest.mark.parametrize('name', NETWORKS)
def test_layers_are_the_same_in_training_and_alone(name):
    make, other, width = NETWORKS[name]
    model = built(make())
    names = ['logits', other]
    reader = LayerReader(model, names, 'student')
    batch = batch_of(model)
    with reader.listening(model) as seen:
        losses = model(**batch, mode='loss')
    inside, alone = reader.read(seen), reader.run(model, batch['inputs'])
    for key in names:
        assert len(inside[key]) == len(alone[key])
        for mine, theirs in zip(inside[key], alone[key]):
            assert mine.requires_grad and len(mine) == 4
            torch.testing.assert_close(mine, theirs)
    assert inside['logits'][0].shape[1] == width
    assert width % logits_of(model, 'student').classes == 0
    total, _ = model.parse_losses(losses)
    total.backward()
    assert model.state_dict().keys() == built(make()).state_dict().keys()
    assert not any('forward' in vars(m) for m in model.modules())


@pytest.mark.parametrize('name', [
    'cls', 'seg', 'deep', 'fcos', 'retinanet', 'yolox', 'ssd', 'timm',
    'cascade'
])
def test_losses_of_rows_are_those_of_a_smaller_batch(name):
    """In eval mode, where images do not meet in a normalisation."""
    model = built(NETWORKS[name][0]())
    layer = 'backbone' if name == 'cascade' else 'logits'
    reader = LayerReader(model, [layer], 'student')
    batch = batch_of(model)
    whole = reader.run(model, batch['inputs'])
    rows = torch.tensor([0, 2])
    samples = [batch['data_samples'][row] for row in rows]
    with reader.listening(model, rows) as seen:
        losses = model(batch['inputs'], samples, mode='loss')
    want = model(batch['inputs'][rows], samples, mode='loss')
    assert losses.keys() == want.keys()
    torch.testing.assert_close(
        model.parse_losses(losses)[0],
        model.parse_losses(want)[0])
    # what is kept is of all images
    torch.testing.assert_close(reader.read(seen)[layer], whole[layer])


def test_two_stage_detectors_have_features():
    model = built(faster_rcnn())
    reader = LayerReader(model, ['backbone[0]', 'neck[0]', 'rpn_head[0]'],
                         'student')
    batch = batch_of(model)
    with reader.listening(model) as seen:
        model(**batch, mode='loss')
    inside, alone = reader.read(seen), reader.run(model, batch['inputs'])
    for name, levels in inside.items():
        torch.testing.assert_close(levels, alone[name])


def test_a_pass_alone_computes_nothing_behind_the_layers():
    model = built(network('seg'))
    model.decode_head.forward = None
    reader = LayerReader(model, ['backbone.layer2'], 'teacher')
    assert reader.run(model, torch.zeros(1, 3, SIZE, SIZE))


@pytest.mark.parametrize('name', ['logits', 'decode_head.conv_seg'])
def test_heads_that_read_more_than_features_are_refused(name):
    model = built(network('seg'))
    model.decode_head.forward = lambda inputs, data_samples: None
    with pytest.raises(ValueError, match='fixed places|more than features'):
        LayerReader(model, [name], 'student')


@pytest.mark.parametrize('name', ['head', 'backbone'])
def test_a_forward_of_ones_own_is_put_back(name):
    model = built(network('cls'))
    part = model.get_submodule(name)
    part.forward = own = part.forward
    reader = LayerReader(model, [name], 'student')
    reader.run(model, torch.zeros(1, 3, SIZE, SIZE))
    with pytest.raises(RuntimeError), reader.listening(model):
        raise RuntimeError
    assert vars(part)['forward'] is own


@pytest.mark.parametrize('make, name, said', [
    (lambda: network('cls'), 'backbone.layer9', "has no layer 'backbone.lay"),
    (lambda: network('cls'), 'logits.fc', 'begin with one of'),
    (lambda: network('cls'), 'backbone[', 'names no layer'),
    (lambda: network('cls'), 3, 'names no layer'),
    (lambda: network('cls'), 'backbone[4]', 'gives 1 outputs'),
    (lambda: network('cls'), 'head[0]', 'tensor of shape'),
    (lambda: network('cls'), 'data_preprocessor', 'does not run in a pass'),
    (lambda: network('cls'), 'head.loss_module', 'does not run in a pass'),
    (lambda: network('det'), 'bbox_head', 'or an entry by its index'),
    (faster_rcnn, 'logits', "has no 'logits' at fixed places"),
    (faster_rcnn, 'roi_head.bbox_head.fc_cls', 'does not run in a pass'),
])
def test_layers_that_give_nothing_are_refused(make, name, said):
    model = built(make())
    with pytest.raises(ValueError, match=said):
        reader = LayerReader(model, [name], 'student')
        reader.run(model, torch.zeros(1, 3, SIZE, SIZE))


def test_what_is_no_task_is_refused():
    backbone = ROOT.build(resnet())
    with pytest.raises(ValueError, match='ResNet is no model that can be'):
        kind_of(backbone)
    assert SCOPES.keys() == {kind_of(built(network(k))) for k in SCOPES}

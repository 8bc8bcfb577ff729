# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The release's layout against a plain forward pass of its description."""

import runpy
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import released
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from PIL import Image
from torchvision import transforms

from vim_mm.interchange import convert_release
from vim_mm.interchange.trunks import ConversionError
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'convert_vim.py'
CONFIGS = dict(
    cls=ROOT / 'configs/vim/release_cls.py',
    seg=ROOT / 'configs/vim/release_seg-voc.py')
NAMES = ['flowers', 'places', 'coco']
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module')
def content() -> dict:
    return released.make_release()


@pytest.fixture(scope='module')
def converted(content, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('release')
    torch.save(content, folder / 'pytorch_model.pt')
    return convert_release(
        folder / 'pytorch_model.pt',
        folder / 'out',
        CONFIGS,
        names=NAMES,
        licence='Apache-2.0')


def build(folder: Path, task: str):
    cfg = Config.fromfile(folder / f'{task}.py')
    init_default_scope(dict(cls='mmpretrain', seg='mmseg')[task[:3]])
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, cfg.load_from, strict=True)
    return model.double()


def double(value):
    """A checkpoint in double precision, in which only rounding is left."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: double(item) for key, item in value.items()}
    if isinstance(value, list):
        return [double(item) for item in value]
    return value


@pytest.fixture(scope='module')
def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        2,
        3,
        released.SIZE,
        released.SIZE,
        generator=generator,
        dtype=torch.float64)


def test_folder_holds_a_zoo_and_every_task(converted):
    found = sorted(p.name for p in converted.iterdir())
    assert found == [
        'cls-birds.pth', 'cls-birds.py', 'seg-voc.pth', 'seg-voc.py',
        'trunk.safetensors', 'zoo'
    ]
    assert [p.name for p in converted.parent.iterdir()
            if p.name[0] == '.'] == []
    zoo = Zoo(converted / 'zoo')
    assert zoo.names() == sorted(NAMES) and zoo.verify() == []
    card = zoo.card('places')
    assert card.adapter == dict(type='vim_mm.ConvPass', hidden_dims=4)
    assert len(card.slots) == 2 * released.DEPTH
    assert card.licence == 'Apache-2.0'


@torch.no_grad()
def test_segmentor_computes_what_the_release_computes(converted, content,
                                                      picture):
    model, content = build(converted, 'seg-voc'), double(content)
    maps = released.run_maps(content, picture, 'seg-voc')
    torch.testing.assert_close(
        list(model.backbone(picture)), maps, rtol=1e-9, atol=1e-9)
    logits = released.run_seg(content, picture, 'seg-voc')
    assert logits.shape == (2, 5, 16, 16)
    torch.testing.assert_close(
        model.decode_head(model.extract_feat(picture)),
        logits,
        rtol=1e-9,
        atol=1e-9)


@torch.no_grad()
def test_classifier_computes_what_the_release_computes(converted, content,
                                                       picture):
    content = double(content)
    scores = released.run_cls(content, picture, 'cls-birds')
    model = build(converted, 'cls-birds')
    torch.testing.assert_close(model(picture), scores, **CLOSE)
    # the gates are those of this task: another task's give other scores
    other = deepcopy(content)
    other['ViM_agg_weights']['cls-birds'] = content['ViM_agg_weights'][
        'seg-voc']
    assert (released.run_cls(other, picture, 'cls-birds') -
            scores).abs().max() > 1e-3


def test_gates_are_named(converted, content):
    gates = build(converted, 'seg-voc').backbone.gates()
    rows = content['ViM_agg_weights']['seg-voc'][7]
    expected = rows['vim_mlp_agg'].softmax(0).tolist()
    assert gates['layers.7.ffn'] == pytest.approx(dict(zip(NAMES, expected)))


def test_class_names_travel(converted):
    state = torch.load(converted / 'seg-voc.pth', weights_only=True)
    assert state['meta']['dataset_meta']['classes'][4] == 'thing 4'


# ------------------------------------------------------------- refusals


def spoil(content: dict, change) -> dict:
    content = deepcopy(content)
    change(content)
    return content


def rename(state: dict, old: str, new: str) -> None:
    state[new] = state.pop(old)


def first(content: dict, branch: str = 'att') -> dict:
    return content['ViM_weights'][0][f'vim_{branch}_weights'][1]


@pytest.mark.parametrize('change, said', [
    (lambda c: c.pop('ViM_agg_weights'), "lacks 'ViM_agg_weights'"),
    (lambda c: rename(c, 'backbone_weights', 'clip'), 'backbone_weights'),
    (lambda c: c['backbone_weights'].pop('ln_pre.bias'), 'pre_norm.bias'),
    (lambda c: c['backbone_weights'].update(extra=torch.ones(1)), 'extra'),
    (lambda c: c['backbone_weights'].pop('proj'), "'proj'"),
    (lambda c: rename(first(c), 'adapter_up.bias', 'up.bias'),
     'adapter_up.bias'),
    (lambda c: first(c).update(scale=torch.ones(1)), "'scale'"),
    (lambda c: first(c).update({'adapter_up.bias': torch.ones(3)}), 'up.bias'),
    (lambda c: rename(c['ViM_weights'][3], 'vim_mlp_weights', 'mlp'),
     'vim_mlp_weights'),
    (lambda c: c['ViM_weights'][3]['vim_att_weights'].pop(), '2 modules'),
    (lambda c: c['ViM_weights'].pop(), 'made for 11 blocks'),
    (lambda c: c.update(ViM_weights=[]), 'no module'),
    (lambda c: c['ViM_agg_weights']['seg-voc'].pop(), 'layers.11'),
    (lambda c: c['ViM_agg_weights']['seg-voc'][2].update(
        vim_att_agg=torch.ones(2)), '(2,) for 3 modules'),
    (lambda c: c['ViM_agg_weights'].pop('cls-birds'), 'cls-birds'),
    (lambda c: c['meta_info'].update(ViM_agg_algo='Soft'), "'Soft'"),
    (lambda c: c['meta_info'].update(task_list=['det-coco']), '--tasks'),
    (lambda c: c['meta_info'].update(task_list=['seg/../../a']), '--tasks'),
    (lambda c: rename(c['head_weights']['cls-birds'], 'classifier.bias',
                      'fc.bias'), 'classifier.bias'),
    (lambda c: rename(c['head_weights']['seg-voc'], 'pre_fpn.1.bias',
                      'neck.1.bias'), 'neck.1.bias'),
    (lambda c: c['head_weights']['seg-voc'].pop('pre_fpn.0.3.bias'),
     'neck.resizes.0.3.bias'),
    (lambda c: c['head_weights']['seg-voc'].pop('fpn_head.conv_seg.weight'),
     'decode_head.conv_seg.weight'),
    (lambda c: c['ViM_weights'][0].update(vim_att_weights=None), 'no list'),
    (lambda c: c['ViM_weights'][0]['vim_att_weights'].__setitem__(0, 'a'),
     'named tensors'),
    (lambda c: c['ViM_agg_weights']['seg-voc'][2].update(
        vim_att_agg=[1., 0., 0.]), 'named tensors'),
    (lambda c: c['head_weights'].update({'seg-voc': None}), 'named tensors'),
    (lambda c: c['backbone_weights'].update(proj=torch.ones(())),
     'the trunk ()'),
    (lambda c: c['head_weights']['seg-voc'].update(
        {'fpn_head.conv_seg.weight': torch.ones(5)}), 'fewer dimensions'),
    (lambda c: c['meta_info']['label_map'].update({'seg-voc': {1: 'a'}}),
     "'label_map'['seg-voc'] is no list"),
    (lambda c: c['meta_info']['label_map'].update({'seg-voc': ['a']}),
     '5 classes and 1 names'),
])
def test_what_is_missing_or_renamed_is_named(change, said, content, tmp_path):
    torch.save(spoil(content, change), tmp_path / 'a.pt')
    with pytest.raises(ConversionError) as error:
        convert_release(tmp_path / 'a.pt', tmp_path / 'out', CONFIGS)
    assert said in str(error.value) and 'a.pt' in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['a.pt']


def test_wrong_calls_say_what_to_do(converted, content, tmp_path):
    src = converted.parent / 'pytorch_model.pt'
    with pytest.raises(ConversionError, match='there already'):
        convert_release(src, converted, CONFIGS)
    with pytest.raises(ConversionError, match='3 modules'):
        convert_release(src, tmp_path / 'a', CONFIGS, names=['one', 'two'])
    with pytest.raises(ConversionError, match="no task 'seg-city'"):
        convert_release(src, tmp_path / 'a', CONFIGS, tasks=['seg-city'])
    with pytest.raises(ConversionError, match='no such file'):
        convert_release(tmp_path / 'b.pt', tmp_path / 'a', CONFIGS)
    assert not list(tmp_path.iterdir())


class Label:
    """What only a trusted pickle may hold."""


def test_pickle_is_trusted_only_when_told(content, tmp_path):
    torch.save(dict(content, note=Label()), tmp_path / 'a.pt')
    with pytest.raises(ConversionError, match='--trust'):
        convert_release(tmp_path / 'a.pt', tmp_path / 'out', CONFIGS)
    assert [p.name for p in tmp_path.iterdir()] == ['a.pt']
    convert_release(
        tmp_path / 'a.pt',
        tmp_path / 'out',
        CONFIGS,
        tasks=['cls-birds'],
        trust=True)
    assert Zoo(tmp_path / 'out/zoo').names()[0] == 'module-0'
    assert not (tmp_path / 'out/seg-voc.pth').exists()


# ------------------------------------------------- preprocessing, the tool


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_preprocessing_is_that_of_the_release(kind, tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(
        rng.integers(0, 255, (150, 331, 3)).astype(np.uint8))
    image.save(tmp_path / 'a.png')
    transform = transforms.Compose([
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ])
    cfg = Config.fromfile(CONFIGS[kind])
    init_default_scope(cfg.default_scope)
    pipeline = Compose([
        step for step in cfg.test_pipeline if 'Annotations' not in step['type']
    ])
    sample = pipeline(dict(img_path=str(tmp_path / 'a.png')))
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    inputs = preprocess(
        dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))
    torch.testing.assert_close(inputs['inputs'][0], transform(image), **CLOSE)


def test_configs_are_of_the_released_sizes():
    for kind, path in CONFIGS.items():
        cfg = Config.fromfile(path)
        trunk = cfg.model.backbone.trunk
        assert (trunk.arch, trunk.patch_size, trunk.img_size) == ('base', 16,
                                                                  224)
    head = Config.fromfile(CONFIGS['seg']).model.decode_head
    assert (head.num_classes, head.channels) == (21, 128)


@pytest.mark.parametrize('task', ['cls-birds', 'seg-voc'])
def test_runner_takes_the_written_config(task, converted, tmp_path):
    cfg = Config.fromfile(converted / f'{task}.py')
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    assert runner.model.backbone.task == task


def test_command_line(converted, tmp_path, monkeypatch):
    src = str(converted.parent / 'pytorch_model.pt')
    monkeypatch.setattr(sys, 'argv', [
        str(TOOL), src,
        str(tmp_path / 'out'), '--tasks', 'cls-birds', '--names', *NAMES
    ])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert not end.value.code
    assert Zoo(tmp_path / 'out/zoo').names() == sorted(NAMES)


def test_command_line_refuses_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}), 'a.pt')
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'a.pt', 'out'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: cannot convert 'a.pt'")
    assert "lacks 'backbone_weights'" in message

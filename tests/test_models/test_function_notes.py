# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What no tensor of a checkpoint tells is compared as it is loaded."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from _moe_tiny import moe_cfg
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from _loading import lines
from _tiny import (KINDS, SCOPES, TRUNKS, build_runner, fill, fusion_neck,
                   model_cfg, save_trunk, vit)
from vim_mm.models import function_notes
from vim_mm.models.checkpoint_notes import TRUNK_MOVED, read_notes
from vim_mm.models.function_notes import (KEY, check_function, check_modules,
                                          keep_function_notes, trunk_said)
from vim_mm.registry import MODELS
from vim_mm.utils.checkpoint_form import CheckpointError
from vim_mm.zoo import ZooError, save_module

BACKBONE = dict(trunk=vit(), new_module='n')
LORA = {'backbone.adapter': dict(type='LoRA', rank=2, alpha=4)}
FUSED = {'backbone.fusion': dict(type='EnsMoE')}
#: kind of task, what the model was trained with, what it is loaded into, and
#: words of the refusal, or of the line
REFUSED = [
    ('cls', LORA, {'backbone.adapter.alpha': 400},
     r"with alpha=4 of the module 'n', and this model has alpha=400: .* Set "
     r'alpha=4 in `model\.backbone\.adapter`'),
    ('det', LORA, {'backbone.adapter.alpha': None}, 'alpha=4 .* alpha=2'),
    ('seg', {'backbone.adapter': dict(type='ConvPass', scale=.5)},
     {'backbone.adapter.scale': 5.}, 'scale=0.5 .* scale=5.0'),
    ('seg', {'backbone.adapter': dict(type='BottleneckAdapter', act='GELU')},
     {'backbone.adapter.act': 'QuickGELU'}, "act='GELU' .*act='QuickGELU'"),
    ('det', {'backbone.adapter': dict(type='SideLadder')},
     {'backbone.trunk.out_indices': [0, 2, 1]},
     r'levels=\[0, 1, 2\] .*levels=\[0, 2, 1\]'),
    ('cls', FUSED, {'backbone.fusion.type': 'LinearMoE'},
     "numbers='logits' of `model.backbone.fusion`"),
]
TOLD = [
    ('cls', {'backbone.fusion': dict(type='EnsMoE', top_k=1)},
     {'backbone.fusion.top_k': None}, 'top_k of `model.backbone.fusion` was 1 '
     'and is None'),
    ('det', FUSED, {'backbone.fusion.type': 'ParameterMerge'},
     "was 'EnsMoE' and is 'ParameterMerge'"),
    ('cls', {'backbone.fusion': dict(type='FixedFusion', weights=dict(n=.7))},
     {'backbone.fusion.weights': dict(n=-50.)}, r"weights .*\{'n': -50.0\}"),
    ('seg', {}, {'backbone.trunk.final_norm': True},
     'final_norm of `model.backbone.trunk` was False and is True'),
    ('seg', {}, {'backbone.trunk.arch.num_heads': 4},
     'arch of `model.backbone.trunk` was .*num_heads'),
    ('det', {}, {'neck.scales': [.5]},
     r'scales of `model.neck` was \[1\] and is \[0.5\]'),
    ('seg', {}, {'neck.sources': [[2, 1, 0]]}, 'sources of `model.neck`'),
    *[(kind, {}, {'data_preprocessor.mean': [100.] * 3},
       r'mean of `model.data_preprocessor` was \[60.0, 60.0, 60.0\] and is '
       r'\[100.0') for kind in KINDS],
    *[(kind, {}, {'data_preprocessor.std': [1., 2., 3.]},
       r'std of .*\[1.0, 2.0, 3.0\]') for kind in KINDS],
    ('cls', {}, {'data_preprocessor.to_rgb': True},
     "channels of .* was 'bgr' and is 'rgb'"),
    ('det', {}, {'data_preprocessor.bgr_to_rgb': True}, "is 'rgb'"),
    ('seg', {'data_preprocessor.bgr_to_rgb': True},
     {'data_preprocessor.bgr_to_rgb': False}, "was 'rgb' and is 'bgr'"),
]
#: What may change between training and test without a word.
SAME: List[Dict[str, Any]] = [
    {}, {'backbone.trunk.drop_path_rate': .3}, {'backbone.trunk.img_size': 56},
    {'backbone.adapter.drop_rate': .5}, {'backbone.adapter.alpha': 4.},
    {'backbone.save_trunk': True}, {'backbone.grad_checkpointing': True},
    {'data_preprocessor.mean': (60, 60, 60)},
    {'backbone.new_module': 'other', 'backbone.adapter.alpha': 40},
]


def made(kind: str, *changes: Dict[str, Any]) -> Any:
    cfg = ConfigDict(
        model=model_cfg(kind, deepcopy(BACKBONE), fusion_neck(kind)))
    for change in changes:
        for key, value in change.items():
            *outer, last = key.split('.')
            part = cfg.model
            for name in outer:
                part = part[name]
            part[last] = deepcopy(value)
    init_default_scope(SCOPES[kind])
    return MODELS.build(cfg.model)


def noted(model: Any) -> dict:
    return dict(meta={KEY: function_notes.function_notes(model)})


@pytest.mark.parametrize('kind, before, change, words', REFUSED)
def test_another_function_is_refused(kind: str, before: dict, change: dict,
                                     words: str) -> None:
    checkpoint = noted(made(kind, before))
    with pytest.raises(ValueError, match=f'^FILE was trained .*{words}'):
        check_function(made(kind, before, change), checkpoint, 'FILE')


@pytest.mark.parametrize('kind, before, change, words', TOLD)
def test_what_may_be_meant_is_told(kind: str, before: dict, change: dict,
                                   words: str,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, function_notes)
    checkpoint = noted(made(kind, before))
    read_notes(made(kind, before, change), checkpoint, 'FILE')
    assert len(said) == 1 and re.search(words, said[0]), said


@pytest.mark.parametrize('change', SAME, ids=str)
def test_the_same_function_loads(change: dict,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, function_notes)
    checkpoint = noted(made('cls', LORA))
    check_function(made('cls', LORA, change), checkpoint, 'FILE')
    for old in ({}, dict(meta=None), dict(meta={}), dict(meta={KEY: {}})):
        check_function(made('cls', LORA), old, 'FILE')
    assert not said


@pytest.mark.parametrize('notes', [3, [1], {'backbone': 3}, {'a': [1]}])
def test_what_is_no_note_is_refused(notes: Any) -> None:
    with pytest.raises(CheckpointError, match='fetch or write it again'):
        check_function(made('cls'), dict(meta={KEY: notes}), 'FILE')


@pytest.mark.parametrize('change, words', [
    (dict(k=4), '[^_]k of `model.layers.1.ffn[^ ]* was 2 and is 4; .*1 more'),
    (dict(gate_scale=3.), 'gate_scale of .* was 4.0 and is 3.0')])
def test_experts(change: dict, words: str,
                 monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, function_notes)
    checkpoint = noted(MODELS.build(moe_cfg()))
    check_function(MODELS.build(moe_cfg()), checkpoint, 'FILE')
    assert not said
    check_function(MODELS.build(moe_cfg(**change)), checkpoint, 'FILE')
    assert re.search(words, said[0])


def test_plain_models_note_nothing() -> None:
    model = made('cls')
    model.backbone, model.neck = model.backbone.trunk, None
    assert function_notes.function_notes(model) == {}


def test_odd_settings_of_a_trunk() -> None:
    model = made('cls')
    model.backbone.trunk_settings = {
        (1, 2): 3, 'a': {(1, ): 2}, 'act': nn.ReLU, 'x': nn.ReLU(),
        'f': torch.relu, 'g': made}
    found = function_notes.function_notes(model)['backbone.trunk']
    assert found == dict(a={}, act='ReLU', x='ReLU', f=found['f'], g='made')
    assert '0x' not in str(found)


def test_notes_of_one_task() -> None:
    notes = {'backbone.trunk': dict(a=1),
             'models.x.backbone.fusion': dict(b=2),
             'models.x.data_preprocessor': dict(c=3),
             'models.y.data_preprocessor': dict(d=4)}
    checkpoint = dict(meta={KEY: notes})
    keep_function_notes(checkpoint, 'models.x')
    assert checkpoint['meta'][KEY] == {
        'backbone.trunk': dict(a=1), 'backbone.fusion': dict(b=2),
        'data_preprocessor': dict(c=3)}
    keep_function_notes({}, 'models.x')


def lora(folder: Path, alpha: int, iters: int = 2, **kwargs: Any) -> Any:
    backbone = dict(BACKBONE, trunk=save_trunk(folder / 'trunk.pth'),
                    adapter=dict(type='LoRA', rank=2, alpha=alpha))
    return build_runner('cls', model_cfg('cls', backbone, fusion_neck('cls')),
                        folder, iters, **kwargs)


def test_other_libraries_load_it(tmp_path: Path) -> None:
    file = str(tmp_path / 'x.pth')
    own = dict(LORA, **{
        'backbone.trunk': save_trunk(tmp_path / 'trunk.pth')})
    model = made('det', own)
    torch.save(dict(noted(model), state_dict=model.state_dict()), file)
    load_checkpoint(made('det', own), file)
    with pytest.raises(ValueError, match='alpha=4 .* alpha=400'):
        load_checkpoint(made('det', own, {'backbone.adapter.alpha': 400}),
                        file)
    plain = nn.Linear(1, 1)  # has no say in what others note
    torch.save(dict(meta={KEY: 3}, state_dict=plain.state_dict()), file)
    load_checkpoint(plain, file)


@pytest.mark.parametrize('resume', [False, True])
def test_a_run_notes_it_and_refuses_another(tmp_path: Path,
                                            resume: bool) -> None:
    lora(tmp_path, 4).train()
    file = str(tmp_path / 'iter_2.pth')
    loaded = CheckpointLoader.load_checkpoint(file, 'cpu')
    assert loaded['meta'][KEY]['backbone.bank.members.n'] == dict(
        type='LoRA', rank=2, alpha=4)
    lora(tmp_path, 4, 3, load_from=file, resume=resume).train()
    with pytest.raises(ValueError, match="alpha=4 of the module 'n'"):
        lora(tmp_path, 400, 3, load_from=file, resume=resume).train()


@pytest.mark.parametrize('kind', KINDS)
def test_modules_that_learned_from_other_images(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, function_notes)
    trunk, zoo = save_trunk(tmp_path / 'trunk.pth'), str(tmp_path / 'zoo')
    learned = made(kind, {'backbone.trunk': trunk})
    fill(learned.backbone.bank)
    card = save_module(learned.backbone, 'n', zoo, trunk=trunk_said(learned))
    assert card.trunk['normalization'] == dict(
        mean=[60.] * 3, std=[60.] * 3, channels='bgr')
    save_module(learned.backbone, 'n', zoo, save_as='untold')
    use = {'backbone.trunk': trunk, 'backbone.new_module': None,
           'backbone.zoo': zoo, 'backbone.modules': ['n', 'untold'],
           'backbone.fusion': dict(type='EnsMoE')}
    check_modules(made(kind, use))
    assert not said
    check_modules(made(kind, use, {'data_preprocessor.std': [1.] * 3}))
    assert len(said) == 1 and re.search(
        r"Module 'n' learned from images of std \[60.0, .* has std \[1.0",
        said[0])


# ------------------------------------------------------------ frozen trunks


class Moves(Hook):
    """What own hooks do to a frozen trunk."""

    def __init__(self, how: str) -> None:
        self.how = how

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        trunk = runner.model.backbone.trunk
        for param in runner.model.teacher.parameters():
            param.data.mul_(.999).add_(param.data, alpha=.001)
        if self.how == 'modules':
            for part in runner.model.modules():
                part.train()
        elif self.how == 'train':
            for part in trunk.modules():
                part.training = True
        elif self.how == 'weights':
            next(trunk.parameters()).data.add_(.1)
        elif self.how == 'swapped':  # two values of one tensor
            values = next(trunk.parameters()).data.view(-1)
            values[0] += 1


@pytest.mark.parametrize('how', ['nothing', 'modules', 'train', 'weights',
                                 'swapped'])
@pytest.mark.parametrize('publishes', [False, True])
def test_a_trunk_that_moves(how: str, publishes: bool, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'trunk.pth'
    trunk = TRUNKS['resnet']
    torch.save(dict(state_dict=MODELS.build(trunk).state_dict()), path)
    trunk = dict(trunk, out_indices=(3, ),
                 init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model = model_cfg('cls', dict(trunk=trunk, new_module='n', probe_size=64),
                      dict(type='GlobalAveragePooling'))
    model.head.in_channels = 64
    hooks = [dict(type='vim_mm.ModuleToZooHook', zoo=str(tmp_path / 'zoo'),
                  dataset='d', task='cls', licence='MIT')] * publishes
    run = build_runner('cls', model, tmp_path, 2, custom_hooks=hooks)
    # a teacher that is averaged rounds
    run.model.add_module('teacher', deepcopy(run.model).requires_grad_(False))
    run.register_hook(Moves(how))
    said: List[str] = []
    monkeypatch.setattr(run.logger, 'error', said.append)
    words = 'The frozen trunk of `model.backbone` has changed .* such as '
    if publishes and how != 'nothing':
        with pytest.raises(ZooError, match=f"^Module 'n' was not .*{words}"):
            run.train()
        assert not (tmp_path / 'zoo').exists()
        return
    run.train()
    assert [bool(re.search(words, each)) for each in said] == \
        [True] * (how != 'nothing')
    file, = tmp_path.glob('iter_*.pth')
    note = torch.load(file, weights_only=False)['meta'].get(TRUNK_MOVED, '')
    assert bool(re.search(words, note)) is (how != 'nothing')
    if publishes:
        return
    again = build_runner('cls', model, tmp_path, 4, resume=True)
    again.model.add_module('teacher', run.model.teacher)
    again.train()
    # the trunk of the first part is gone, whatever the second part does
    later = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['meta']
    assert later.get(TRUNK_MOVED, '') == note

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What vim_mm promises, one test each, whatever else changes."""

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

import vim_mm
from _tiny import (SIZE, TRUNKS, add_modules, build_backbone, build_runner,
                   fill, fusion_neck, model_cfg, same, save_trunk, snapshot)
from vim_mm.registry import MODELS
from vim_mm.utils.checkpoint import UntrustedPickleError
from vim_mm.zoo import Zoo, ZooError, save_module

ROOT = Path(__file__).resolve().parents[1]
NAMES = ['a', 'b', 'c']


def pictures() -> Tensor:
    return torch.randn(
        2, 3, SIZE, 70, generator=torch.Generator().manual_seed(0))


def equal(first: tuple, second: tuple) -> bool:
    return all(map(torch.equal, first, second)) and len(first) == len(second)


def close(first: tuple, second: tuple) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trunk and a zoo of three modules."""
    backbone = build_backbone(save_trunk(tmp_path / 'trunk.pth'))
    add_modules(backbone, *NAMES)
    for name in NAMES:
        save_module(backbone, name, str(tmp_path / 'zoo'))
    return tmp_path


def backbone_cfg(folder: Path, **kwargs) -> dict:
    return dict(
        dict(
            trunk=save_trunk(folder / 'trunk.pth'),
            zoo=str(folder / 'zoo'),
            modules=NAMES), **kwargs)


def digest(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)):
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*')) if path.is_file()
    }


@pytest.mark.parametrize('kind', ['cls', 'det', 'seg'])
def test_invariant_1_trunk_and_zoo_bit_identical_after_training(
        kind: str, folder: Path) -> None:
    cfg = backbone_cfg(folder, fusion=dict(type='EnsMoE'))
    run = build_runner(
        kind, model_cfg(kind, cfg, fusion_neck(kind)), folder / 'work',
        iters=3)
    backbone = run.model.backbone
    tensors, files = snapshot(backbone.trunk), digest(folder / 'zoo')
    modules = {name: backbone.bank.export(name) for name in NAMES}
    # what learns downstream: the logits, 6 N here, and neck and head
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert trained == ['fusion.logits.default']
    assert backbone.fusion.logits['default'].numel() == 6 * len(NAMES)
    run.train()
    assert same(snapshot(backbone.trunk), tensors)
    assert all(same(backbone.bank.export(n), modules[n]) for n in NAMES)
    assert digest(folder / 'zoo') == files
    assert backbone.fusion.logits['default'].abs().sum() > 0
    run.model.train()
    assert not any(m.training for m in backbone.trunk.modules())
    assert not any(m.training for m in backbone.bank.members['a'].modules())


@pytest.mark.parametrize('kind', list(TRUNKS))
def test_invariant_2_a_fresh_module_leaves_outputs_exactly_unchanged(
        kind: str) -> None:
    probe = 64 if kind in ('swin', 'timm') else SIZE
    backbone = MODELS.build(
        dict(type='vim_mm.ViMBackbone', trunk=TRUNKS[kind], probe_size=probe))
    x = pictures()[..., :SIZE] if 'vit' in kind else torch.randn(2, 3, 64, 96)
    plain = backbone(x)
    cfg = dict(type='ConvPass', hidden_dims=4, conv_init='xavier')
    for name in NAMES:
        backbone.add(name, cfg)
    streams = backbone(x)
    assert len(streams) == 3 and all(equal(s, plain) for s in streams)
    # any zoo of zero modules, any gates
    backbone.set_fusion(dict(type='EnsMoE'))
    backbone.fusion.set_logits('default', torch.randn(len(backbone.slots), 3))
    assert equal(backbone(x), plain)


def test_invariant_3_wide_bank_is_the_loop_over_modules() -> None:
    backbone = build_backbone()
    add_modules(backbone, *NAMES)
    bank, x = backbone.bank.double(), torch.randn(2, 7, 32).double()
    gates = torch.rand(3).double()
    for slot in backbone.slots:
        wide = bank(slot, x, (2, 3), NAMES, gates)
        loop = sum(g * bank(slot, x, (2, 3), [n], None)
                   for g, n in zip(gates, NAMES))
        torch.testing.assert_close(wide, loop)


def test_invariant_3_one_hot_and_identical_modules() -> None:
    backbone = build_backbone()
    add_modules(backbone, *NAMES)
    alone = backbone(pictures())
    backbone.set_fusion(dict(type='EnsMoE'))
    for index, stream in enumerate(alone):
        one_hot = torch.full((3, ), -torch.inf)
        one_hot[index] = 0.
        backbone.fusion.set_logits('default', one_hot)
        close(backbone(pictures()), stream)
    for name in NAMES:
        fill(backbone.bank.members[name], 0.2, seed=sum(map(ord, 'a')))
    for seed in range(3):
        backbone.fusion.set_logits(
            'default',
            torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)))
        close(backbone(pictures()), alone[0])


def test_invariant_4_an_appended_module_changes_no_earlier_task(
        folder: Path) -> None:
    tasks = dict(old=['a', 'b'])
    cfg = backbone_cfg(folder, modules=['a', 'b'])
    old = build_backbone(**cfg, fusion=dict(type='EnsMoE', tasks=tasks))
    old.fusion.set_logits('old', torch.randn(6, 2))
    before, logits = old(pictures()), old.fusion.logits['old'].clone()

    rebuilt = build_backbone(
        **backbone_cfg(folder),
        fusion=dict(type='EnsMoE', tasks=dict(tasks, new=NAMES)))
    rebuilt.load_state_dict(old.state_dict(), strict=False)
    assert equal(rebuilt(pictures()), before)

    old.load_modules(str(folder / 'zoo'), ['c'])
    old.add_task('new', NAMES)
    assert equal(old(pictures()), before)
    old.select_task('new')
    old.learn_tasks()
    loss = sum(o.square().sum() for o in old(pictures()))
    loss.backward()
    torch.optim.SGD(old.fusion.parameters(), lr=1.).step()
    old.eval().select_task('old')
    assert torch.equal(old.fusion.logits['old'], logits)
    assert equal(old(pictures()), before)


FRESH = """
import sys, torch
from _tiny import build_backbone, vit
init_cfg = dict(type='Pretrained', checkpoint=sys.argv[1])
backbone = build_backbone(
    vit(init_cfg=init_cfg), zoo=sys.argv[2], modules=['a'])
x = torch.randn(2, 3, 56, 70, generator=torch.Generator().manual_seed(0))
torch.save(backbone(x), sys.argv[3])
"""


def test_invariant_5_a_file_holds_the_delta_and_knows_its_trunk(
        folder: Path) -> None:
    card, tensors = Zoo(folder / 'zoo').load('a')
    assert {k.rsplit('.', 2)[0] for k in tensors} == set(card.slots)
    assert all(k.split('.')[-2] in ('down', 'conv', 'up') for k in tensors)
    size = (folder / 'zoo' / 'a' / 'module.safetensors').stat().st_size
    assert size < 4 * card.num_params + 10_000

    paths = [ROOT, ROOT / 'tests', *sys.path]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)))
    result = folder / 'outputs.pth'
    subprocess.run(
        [
            sys.executable, '-c', FRESH, folder / 'trunk.pth', folder / 'zoo',
            result
        ],
        env=env,
        check=True,
        capture_output=True)
    original = build_backbone(save_trunk(folder / 'trunk.pth'))
    add_modules(original, 'a')
    assert equal(torch.load(result), original(pictures()))

    other = save_trunk(folder / 'other.pth', seed=3)
    with pytest.raises(ZooError, match="'a' does not fit this trunk"):
        build_backbone(**backbone_cfg(folder, trunk=other))


def test_invariant_6_no_network_in_any_default_config() -> None:
    remote = ('http://', 'https://', 's3://', 'openmmlab://',
              'torchvision://', 'modelzoo://')
    found = []
    for path in sorted((ROOT / 'configs').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(
                    node.value, str) and node.value.startswith(remote):
                found.append(f'{path}: {node.value}')
            # TIMM and HF backbones download when they are told so
            if isinstance(node, ast.keyword) and node.arg == 'pretrained':
                if getattr(node.value, 'value', None) is True:
                    found.append(f'{path}: pretrained=True')
    assert not found


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, 'w')


def test_invariant_6_no_pickle_runs_code(tmp_path: Path) -> None:
    sprung = tmp_path / 'sprung'
    trunk = save_trunk(tmp_path / 'trunk.pth')
    state = torch.load(tmp_path / 'trunk.pth')
    torch.save(dict(state, trap=Trap(str(sprung))), tmp_path / 'trunk.pth')
    with pytest.raises(UntrustedPickleError, match='can run any code'):
        build_backbone(trunk)
    assert not sprung.exists()


OTHER_PROJECT = """
_base_ = 'vim_mm::_base_/default_runtime.py'
model = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(type='vim_mm.ViMBackbone', new_module='n'))
"""


def test_invariant_7_ordinary_registry_types(folder: Path) -> None:
    types = [
        'ViMBackbone', 'ConvPass', 'EnsMoE', 'FixedFusion', 'ViMFusionNeck',
        'StandardizedPooling'
    ]
    from mmdet.registry import MODELS as other
    for name in types:
        assert other.get(f'vim_mm.{name}') is MODELS.get(name) is not None
    cfg = dict(backbone_cfg(folder), type='vim_mm.ViMBackbone',
               probe_size=SIZE)
    assert other.build(cfg).bank.names == NAMES


def test_invariant_7_configs_are_a_base_for_others(tmp_path: Path) -> None:
    if not (Path(vim_mm.__file__).parent / '.mim').exists():
        pytest.skip('vim_mm runs from a source tree; install it')
    path = tmp_path / 'theirs.py'
    path.write_text(OTHER_PROJECT)
    cfg = Config.fromfile(path)
    own = Config.fromfile(ROOT / 'configs/_base_/default_runtime.py')
    assert cfg.default_hooks == own.default_hooks
    assert cfg.model.backbone.type == 'vim_mm.ViMBackbone'

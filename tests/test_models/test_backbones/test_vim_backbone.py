# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ViMBackbone against a ViT block loop, and what makes it a good citizen."""

import copy
import pickle
from pathlib import Path
from typing import List

import onnxruntime
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from _tiny import (DIMS, SIZE, TRUNKS, add_modules, build_backbone, compiles,
                   fill, same, save_trunk, snapshot, vit)
from vim_mm.models.adapters import ConvPass
from vim_mm.models.backbones import ViMBackbone
from vim_mm.registry import MODELS
from vim_mm.zoo import ZooError, save_module


def pictures(*size: int, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *(size or (SIZE, SIZE)), generator=generator)


def equal(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for a, b in zip(first, second))


def close(first: tuple, second: tuple, **kwargs) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, **kwargs)


def stock(backbone: ViMBackbone) -> nn.Module:
    """The trunk as its own library builds it."""
    trunk = MODELS.build(
        vit(arch=backbone.trunk.arch_settings,
            out_indices=backbone.trunk.out_indices))
    trunk.load_state_dict(backbone.trunk.state_dict())
    trunk.eval()
    return trunk


def insertion(backbone: ViMBackbone, x: Tensor, names: List[str],
              gates: Tensor) -> List[Tensor]:
    """Equation (2.2), block by block, with one adapter at a time."""
    trunk = stock(backbone)  # without the hooks
    grid = (x.shape[2] // 14, x.shape[3] // 14)
    x, _ = trunk.patch_embed(x)
    x = torch.cat([trunk.cls_token.expand(len(x), -1, -1), x], dim=1)
    x = x + trunk.resize_pos_embed(trunk.pos_embed, (4, 4), grid,
                                   trunk.interpolate_mode, 1)

    def delta(slot: str, row: int, z: Tensor) -> Tensor:
        return sum(gates[row, k] * backbone.bank.members[name][slot](z, grid)
                   for k, name in enumerate(names))

    outputs = []
    for i, block in enumerate(trunk.layers):
        n1 = block.ln1(x)
        x = x + block.attn(n1) + delta(f'layers-{i}-attn', 2 * i, n1)
        n2 = block.ln2(x)
        mlp = block.ffn.layers(n2)
        x = x + mlp + delta(f'layers-{i}-ffn', 2 * i + 1, n2)
        outputs.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
    return outputs


@pytest.mark.parametrize('size', [(56, 56), (28, 70), (42, 14)])
def test_insertion_into_a_vit(size: tuple) -> None:
    backbone = build_backbone()
    fill(backbone.trunk, 0.1)
    add_modules(backbone, 'a', 'b')
    backbone.set_fusion(dict(type='EnsMoE'))
    backbone.fusion.set_logits('default', torch.randn(6, 2))
    gates = backbone.fusion.gates('default')
    got = backbone(pictures(*size))
    close(list(got), insertion(backbone, pictures(*size), ['a', 'b'], gates))
    plain = stock(backbone)(pictures(*size))
    assert not any(torch.allclose(g, p, atol=1e-3)
                   for g, p in zip(got, plain))


@pytest.mark.parametrize('kind', list(TRUNKS))
def test_fresh_module_changes_nothing_and_learns(kind: str) -> None:
    torch.manual_seed(0)
    cfg = dict(TRUNKS[kind])
    probe = 64 if kind in ('swin', 'timm') else SIZE
    backbone = MODELS.build(
        dict(type='ViMBackbone', trunk=cfg, probe_size=probe, new_module='n',
             fusion=dict(type='EnsMoE')))
    plain = MODELS.build(cfg)
    plain.load_state_dict(backbone.trunk.state_dict())
    plain.eval()
    # no square, and beyond the grid of the probe
    x = pictures(56, 84) if 'vit' in kind else pictures(64, 96)
    outputs = backbone(x)
    assert equal(outputs, plain(x))
    sum(o.square().sum() for o in outputs).backward()
    ups = {n: p for n, p in backbone.bank.named_parameters() if '.up.' in n}
    assert ups and all(p.grad.abs().sum() > 0 for p in ups.values())
    assert not any(p.grad is not None for p in backbone.trunk.parameters())

    fill(backbone.bank, 0.05)
    backbone.zero_grad(set_to_none=True)
    changed = backbone(x)
    assert not any(torch.equal(a, b) for a, b in zip(changed, outputs))
    sum(o.square().sum() for o in changed).backward()
    silent = [n for n, p in backbone.bank.named_parameters()
              if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize('kind', ['resnet', 'timm'])
def test_batch_norm_of_the_trunk_stays_in_eval_mode(kind: str) -> None:
    backbone = build_backbone(TRUNKS[kind], new_module='n')
    model = nn.Sequential(backbone)
    before = snapshot(backbone.trunk)
    model.train()
    assert backbone.training and backbone.bank.members['n'].training
    assert not any(m.training for m in backbone.trunk.modules())
    sum(o.sum() for o in backbone(pictures(64, 64))).backward()
    assert same(snapshot(backbone.trunk), before)
    model.eval()
    assert not any(m.training for m in backbone.modules())


# ------------------------------------------------------- streams and gates


def test_several_modules_without_fusion_are_streams() -> None:
    backbone = build_backbone()
    with_none = backbone(pictures())
    assert equal(with_none, backbone.trunk(pictures()))
    add_modules(backbone, 'a')
    single = backbone(pictures())
    assert isinstance(single[0], Tensor)
    add_modules(backbone, 'b')
    streams = backbone(pictures())
    assert len(streams) == 2 and equal(streams[0], single)
    with backbone.only('b'):
        assert equal(streams[1], backbone(pictures()))


def test_only() -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a', 'b')
    with backbone.only():
        assert equal(backbone(pictures()), stock(backbone)(pictures()))
        with backbone.only('b', 'a'):
            both = backbone(pictures())
        assert equal(backbone(pictures()), stock(backbone)(pictures()))
    gates = torch.ones(6, 2)
    close(
        list(both), insertion(backbone, pictures(), ['b', 'a'], gates))
    with pytest.raises(ValueError, match=r"no modules \['z'\]; it holds"):
        with backbone.only('z'):
            pass
    with pytest.raises(KeyError):
        with backbone.only('a'):
            raise KeyError
    assert len(backbone(pictures())) == 2


def fused(names: List[str], fusion: dict, task: str = None,
          trunk: dict = None) -> ViMBackbone:
    """A backbone whose frozen modules are ``names`` and which fuses them."""
    torch.manual_seed(0)
    backbone = build_backbone(trunk)
    add_modules(backbone, *names)
    backbone.set_fusion(fusion)
    backbone.select_task(task)
    backbone.learn_tasks()
    return backbone


def test_tasks_are_selected() -> None:
    tasks = dict(x=['a'], y=['b', 'a'])
    backbone = fused(['a', 'b'], dict(type='EnsMoE', tasks=tasks))
    assert backbone.task == 'x'
    with backbone.only('a'):
        alone = backbone(pictures())
    close(backbone(pictures()), alone)
    backbone.select_task('y')
    backbone.learn_tasks(['y'])
    backbone.fusion.set_logits('y', torch.tensor([0., 1.]))
    outputs = backbone(pictures())
    gates = backbone.fusion.gates('y')
    close(list(outputs), insertion(backbone, pictures(), ['b', 'a'], gates))
    assert not backbone.fusion.logits['x'].requires_grad
    sum(o.square().sum() for o in outputs).backward()
    assert backbone.fusion.logits['y'].grad.abs().sum() > 0
    assert backbone.fusion.logits['x'].grad is None
    named = backbone.gates()
    assert list(named) == list(backbone.slots)
    assert named['layers.2.ffn'] == pytest.approx({'b': .2689, 'a': .7311},
                                                  abs=1e-4)
    with pytest.raises(ValueError, match="no task 'z'"):
        backbone.select_task('z')


def test_fixed_fusion_of_weights() -> None:
    weights = dict(a=0.5, b=2.)
    backbone = fused(['a', 'b'], dict(type='FixedFusion', weights=weights))
    gates = torch.tensor([[.5, 2.]]).expand(6, 2)
    close(
        list(backbone(pictures())),
        insertion(backbone, pictures(), ['a', 'b'], gates))
    assert not any(p.requires_grad for p in backbone.fusion.parameters())


def test_top_k_excludes_a_module_exactly() -> None:
    backbone = fused(['a', 'b', 'c'], dict(type='EnsMoE', top_k=2))
    backbone.fusion.set_logits('default', torch.tensor([1., 0., 2.]))
    before = backbone(pictures())
    fill(backbone.bank.members['b'], seed=77)
    assert equal(backbone(pictures()), before)


def test_every_module_learned_beside_frozen_ones() -> None:
    backbone = build_backbone(new_module='n', fusion=dict(type='EnsMoE'))
    assert backbone.new_module == 'n' and backbone.bank.names == ['n']
    assert backbone.bank.adapter_cfg('n')['hidden_dims'] == 8
    # K = 1: output independent of the logit
    fill(backbone.bank)
    before = backbone(pictures())
    backbone.fusion.set_logits('default', torch.tensor([3.]))
    assert equal(backbone(pictures()), before)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(('kwargs', 'sentence'), [
    (dict(slots='blocks.*'), "'blocks.*' matches no submodule"),
    (dict(task='t'), 'has no `fusion` to hold tasks'),
    (dict(new_module='n', fusion=dict(type='EnsMoE'), task='t'),
     "no task 't'"),
    (dict(new_module='n', fusion=dict(type='EnsMoE', tasks=dict(t=['m']))),
     r"Task 't' asks .*\['m'\]"),
    (dict(modules=['m']), 'no `zoo` is given'),
    (dict(new_module='a.b'), "'a.b' cannot name a module"),
    (dict(new_module=3), '3 cannot name a module'),
    (dict(new_module=['n']), r"\['n'\] cannot name a module"),
    (dict(fusion=dict(type='EnsMoE')), 'has no modules'),
])
def test_mistakes_in_the_config(kwargs: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_backbone(**kwargs)


def test_a_child_config_can_unset_the_adapter(zoo: Path) -> None:
    unset = build_backbone(trunk_of(zoo), adapter=None, new_module='n')
    plain = build_backbone(trunk_of(zoo), new_module='n')
    assert unset.bank.adapter_cfg('n') == plain.bank.adapter_cfg('n')
    bare = build_backbone(trunk_of(zoo), adapter=None, new_module=None)
    assert bare.bank.names == []


@pytest.mark.parametrize('size', [(56, 57), (60, 56)])
def test_sizes_that_the_trunk_pads(size: tuple) -> None:
    backbone = build_backbone(new_module='n')
    images = pictures(*size)
    assert all(map(torch.equal, backbone(images), stock(backbone)(images)))


def test_a_slot_pattern_of_ones_own() -> None:
    backbone = build_backbone(slots=r'layers\.[12]\.attn', new_module='n')
    assert backbone.bank.slots_of('n') == ['layers.1.attn', 'layers.2.attn']
    fill(backbone.bank)
    outputs, plain = backbone(pictures()), stock(backbone)(pictures())
    assert torch.equal(outputs[0], plain[0])
    assert not torch.allclose(outputs[1], plain[1], atol=1e-3)


# -------------------------------------------------------------------- zoo


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A trunk with its weights, and a zoo with the modules a, b and c."""
    backbone = build_backbone(save_trunk(tmp_path / 'trunk.pth'))
    add_modules(backbone, 'a', 'b', 'c')
    for name in backbone.bank.names:
        save_module(backbone, name, str(tmp_path / 'zoo'))
    return tmp_path


def trunk_of(folder: Path, **kwargs) -> dict:
    checkpoint = str(folder / 'trunk.pth')
    return vit(init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
               **kwargs)


def test_modules_of_a_zoo_are_frozen_and_run(zoo: Path) -> None:
    backbone = build_backbone(
        trunk_of(zoo), modules=['b', 'a'], zoo=str(zoo / 'zoo'),
        new_module='n')
    assert backbone.bank.names == ['b', 'a', 'n']
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert trained and all(n.startswith('bank.members.n.') for n in trained)
    original = build_backbone(trunk_of(zoo))
    add_modules(original, 'b')
    assert equal(backbone(pictures())[0], original(pictures()))
    backbone.load_modules(str(zoo / 'zoo'), ['c'])
    assert backbone.bank.names == ['b', 'a', 'n', 'c']


def test_modules_that_do_not_fit_are_refused(zoo: Path) -> None:
    kwargs = dict(modules=['a'], zoo=str(zoo / 'zoo'))
    torch.manual_seed(5)
    with pytest.raises(ZooError, match='the weights in its slots differ'):
        build_backbone(vit(), **kwargs)
    with pytest.raises(ZooError, match="has no module 'z'"):
        build_backbone(trunk_of(zoo), modules=['z'], zoo=kwargs['zoo'])
    with pytest.raises(ValueError, match="already holds a module 'a'"):
        build_backbone(trunk_of(zoo), new_module='a', **kwargs)


def test_a_module_brings_slots_that_a_fusion_did_not_have(zoo: Path) -> None:
    backbone = build_backbone(
        trunk_of(zoo), slots=r'.*\.attn', new_module='n',
        fusion=dict(type='EnsMoE'))
    fill(backbone.bank, 0.1)
    before = backbone(pictures())
    backbone.load_modules(str(zoo / 'zoo'), ['a'])
    assert len(backbone.slots) == 6
    # it does not run without half of its adapters
    assert set(backbone.bank.slots_of('a')) == set(backbone.slots)
    assert len(backbone.fusion.gates('default')) == 3
    assert equal(backbone(pictures()), before)


def test_one_more_module_leaves_an_older_task_bit_identical(
        zoo: Path) -> None:
    tasks = dict(old=['a', 'b'])
    kwargs = dict(zoo=str(zoo / 'zoo'))
    old = build_backbone(
        trunk_of(zoo), modules=['a', 'b'],
        fusion=dict(type='EnsMoE', tasks=tasks), **kwargs)
    old.fusion.set_logits('old', torch.randn(6, 2))
    before = old(pictures())
    # the whole model built again with one more module, in between
    tasks.update(new=['a', 'b', 'c'])
    new = build_backbone(
        trunk_of(zoo), modules=['a', 'c', 'b'],
        fusion=dict(type='EnsMoE', tasks=tasks), **kwargs)
    new.load_state_dict(old.state_dict(), strict=False)
    assert equal(new(pictures()), before)
    new.eval().select_task('new')
    assert not equal(new(pictures()), before)
    # the same model, with a module and a task added
    old.load_modules(kwargs['zoo'], ['c'])
    old.add_task('new')
    assert equal(old(pictures()), before)
    old.eval().select_task('new')
    assert not equal(old(pictures()), before)


# -------------------------------------------------- checkpoints and copies


class Two(BaseModule):
    """Two backbones under different prefixes, and siblings."""

    def __init__(self, trunk: dict, **kwargs) -> None:
        super().__init__()
        # hooks see what came before them in the shared dictionary
        self.trunk = nn.Linear(2, 2)
        self.student = build_backbone(trunk, new_module='n')
        self.branches = nn.ModuleDict(
            dict(teacher=build_backbone(trunk, new_module='n', **kwargs)))
        self.trunk_norm = nn.BatchNorm1d(2)
        self.backbone = nn.Linear(2, 2)


def test_checkpoints_without_the_trunk(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    model = Two(trunk)
    fill(model.student.bank, seed=1)
    fill(model.branches.teacher.bank, seed=2)
    state = model.state_dict()
    assert not [k for k in state if '.trunk.' in k]
    assert {'trunk.weight', 'trunk_norm.running_mean',
            'backbone.bias'} <= set(state)
    prefixes = ('student.', 'branches.teacher.')
    for prefix in prefixes:
        assert {k[len(prefix):].split('.')[0] for k in state
                if k.startswith(prefix)} == {'bank', 'trunk_fingerprint'}

    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    for load in (
            lambda m: m.load_state_dict(state, strict=True),
            lambda m: load_checkpoint(
                m, str(tmp_path / 'model.pth'), strict=True)):
        torch.manual_seed(9)
        other = Two(trunk)
        load(other)
        assert same(snapshot(other), snapshot(model))
    # what was loaded is still what the caller has
    assert not [k for k in state if '.trunk.' in k]


def test_strict_loading_still_finds_what_is_missing(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    state = Two(trunk).state_dict()
    state.pop('student.bank.members.n.layers-0-ffn.up.bias')
    state['student.trunks.x'] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        Two(trunk).load_state_dict(state)
    assert 'layers-0-ffn.up.bias' in str(error.value)
    assert 'student.trunks.x' in str(error.value)


def test_a_checkpoint_beside_another_trunk_is_refused(tmp_path: Path) -> None:
    first = save_trunk(tmp_path / 'first.pth', seed=1)
    second = save_trunk(tmp_path / 'second.pth', seed=2)
    model = build_backbone(first, new_module='n')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    other = build_backbone(second, new_module='n')
    before = snapshot(other)
    sentence = 'trained beside another trunk .*init_cfg.checkpoint'
    with pytest.raises(ValueError, match=sentence):
        other.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(other, str(tmp_path / 'model.pth'))
    assert same(snapshot(other), before)


def test_save_trunk_keeps_it(tmp_path: Path) -> None:
    first = save_trunk(tmp_path / 'first.pth', seed=1)
    second = save_trunk(tmp_path / 'second.pth', seed=2)
    model = build_backbone(first, new_module='n', save_trunk=True)
    state = model.state_dict()
    assert {k for k in state if k.startswith('trunk.')} == {
        f'trunk.{k}' for k in model.trunk.state_dict()}
    # such a file brings its own trunk, where there is none yet
    other = build_backbone(dict(second, init_cfg=None), new_module='n')
    other.load_state_dict(state)
    assert same(snapshot(other), snapshot(model))
    # a trunk that a zoo's modules may belong to is never replaced
    other = build_backbone(second, new_module='n')
    before = snapshot(other)
    with pytest.raises(ValueError, match='trained beside another trunk'):
        other.load_state_dict(state)
    assert same(snapshot(other), before)


@pytest.mark.parametrize('duplicate', [
    copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))
], ids=['deepcopy', 'pickle'])
def test_a_copy_runs_its_own_adapters(duplicate) -> None:
    backbone = fused(['a', 'b'], dict(type='EnsMoE'))
    # a copy can be made after a pass that left a graph behind
    before = tuple(o.detach() for o in backbone(pictures()))
    other = duplicate(backbone)
    assert equal(other(pictures()), before)
    fill(other.bank, seed=5)
    assert not equal(other(pictures()), before)
    assert equal(backbone(pictures()), before)
    fill(backbone.bank, seed=5)
    assert equal(other(pictures()), backbone(pictures()))
    other.train()
    assert not other.trunk.training
    assert other.state_dict().keys() == backbone.state_dict().keys()
    backbone.load_state_dict(other.state_dict())


def test_the_init_cfg_of_a_model_does_not_reach_inside() -> None:
    """Swin classifiers re-initialise every Linear and LayerNorm."""

    class Model(BaseModule):

        def __init__(self) -> None:
            super().__init__(init_cfg=[
                dict(type='TruncNormal', layer='Linear', std=1.),
                dict(type='Constant', layer='LayerNorm', val=3.)
            ])
            self.backbone = build_backbone(new_module='n')
            self.head = nn.Linear(2, 2)

    model = Model()
    inside, head = snapshot(model.backbone), snapshot(model.head)
    model.init_weights()
    assert same(snapshot(model.backbone), inside)
    assert not same(snapshot(model.head), head)


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_init_cfg_names_no_weights_of_a_trunk(tmp_path: Path,
                                              prefix: str) -> None:
    """As that of a stock backbone would, whose place this one takes."""
    path = tmp_path / 'trunk.pth'
    save_trunk(path)
    state = torch.load(path)['state_dict']
    torch.save({f'{prefix or ""}{k}': v for k, v in state.items()}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    backbone = build_backbone(new_module='n', init_cfg=init_cfg)
    with pytest.raises(ValueError, match='`model.backbone.init_cfg` names .*'
                       '`model.backbone.trunk.init_cfg`'):
        backbone.init_weights()


def test_init_cfg_starts_from_a_checkpoint(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    trained = build_backbone(trunk, new_module='n')
    fill(trained.bank)
    torch.save(trained.state_dict(), tmp_path / 'backbone.pth')
    init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
    backbone = build_backbone(trunk, new_module='n', init_cfg=init_cfg)
    backbone.init_weights()
    assert same(snapshot(backbone), snapshot(trained))


# ------------------------------------------------------- devices, compilers


def test_meta_device() -> None:
    with torch.device('meta'):
        backbone = MODELS.build(
            dict(
                type='ViMBackbone',
                trunk=dict(
                    type='mmpretrain.VisionTransformer',
                    arch='b',
                    out_type='featmap'),
                new_module='n',
                fusion=dict(type='EnsMoE')))
    out, = backbone(torch.empty(1, 3, 224, 224, device='meta'))
    assert out.shape == (1, 768, 14, 14)
    # the table of the paper: 24 adapters of width 8; 24 logits a module
    sizes = {
        part: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for part, module in backbone.named_children()
    }
    assert sizes == dict(trunk=0, bank=327552, fusion=24)
    assert len(backbone.bank.members['n']) == 24


@pytest.mark.parametrize('width', [4, 8, 16, 32, 64])
def test_parameters_of_a_module_of_vit_b(width: int) -> None:
    table = {4: 169536, 8: 327552, 16: 664320, 32: 1420800, 64: 3265536}
    with torch.device('meta'):
        backbone = MODELS.build(
            dict(
                type='ViMBackbone',
                trunk=dict(type='mmpretrain.VisionTransformer', arch='b'),
                adapter=dict(type='ConvPass', hidden_dims=width),
                new_module='n'))
    assert sum(p.numel() for p in backbone.bank.parameters()) == table[width]


def test_autocast() -> None:
    backbone = fused(['a', 'b'], dict(type='EnsMoE'))
    full = backbone(pictures())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = backbone(pictures())
    for f, h in zip(full, half):
        assert (f - h.float()).abs().mean() < 0.05 * f.abs().mean()
    sum(h.float().square().sum() for h in half).backward()
    assert backbone.fusion.logits['default'].grad.abs().sum() > 0


def compiled_pair(backend: str) -> tuple:
    arch = dict(
        embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=64)
    trunk = vit(arch=arch, out_indices=[0])
    backbone = fused(['a', 'b'], dict(type='EnsMoE'), trunk=trunk)
    torch._dynamo.reset()
    return backbone, torch.compile(backbone, backend=backend)


def test_torch_compile_gives_outputs_and_gradients() -> None:
    backbone, compiled = compiled_pair('aot_eager')
    fill(backbone.trunk, 0.1)
    results = []
    for model in (compiled, backbone):
        output, = model(pictures())
        logits = backbone.fusion.logits['default']
        grad, = torch.autograd.grad(output.square().sum(), logits)
        results.append((output.detach(), grad))
    close(*results)
    assert results[0][1].abs().sum() > 0


@compiles
def test_torch_compile_follows_what_changes() -> None:
    backbone, compiled = compiled_pair('eager')
    close(compiled(pictures()), backbone(pictures()))
    other = copy.deepcopy(backbone.bank)
    fill(other, 0.1, seed=3)
    backbone.bank.load_state_dict(other.state_dict())
    backbone.fusion.set_logits('default', torch.tensor([2., 0.]))
    close(compiled(pictures()), backbone(pictures()))
    backbone.add_task('b', ['b'])
    backbone.select_task('b')
    backbone.learn_tasks()
    close(compiled(pictures()), backbone(pictures()))
    with backbone.only():
        close(compiled(pictures()), stock(backbone)(pictures()))


def test_jit_trace() -> None:
    backbone = fused(['a', 'b'], dict(type='EnsMoE')).eval()
    traced = torch.jit.trace(backbone, pictures())
    other = pictures(seed=1)
    close(tuple(traced(other)), backbone(other))


def test_onnx(tmp_path: Path) -> None:
    backbone = fused(['a', 'b'], dict(type='EnsMoE')).eval()
    path = str(tmp_path / 'backbone.onnx')
    torch.onnx.export(
        backbone, (pictures(), ), path, input_names=['x'], dynamo=False)
    session = onnxruntime.InferenceSession(path)
    other = pictures(seed=1)
    outputs = session.run(None, dict(x=other.numpy()))
    close([torch.from_numpy(o) for o in outputs],
          [o.detach() for o in backbone(other)])


def test_drop_in_shapes() -> None:
    backbone = build_backbone(new_module='n')
    assert [tuple(o.shape) for o in backbone(pictures(28, 70))] == [
        (2, DIMS, 2, 5)] * 3


def test_add_task_knows_the_bank_and_leaves_the_current_task() -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a', 'b')
    with pytest.raises(ValueError, match='fusion'):
        backbone.add_task('new')
    backbone = build_backbone(
        new_module='a', fusion=dict(type='EnsMoE', tasks=['old']))
    backbone.add_task('new')
    assert backbone.task == 'old'
    assert not backbone.fusion.logits['new'].requires_grad
    with pytest.raises(ValueError, match='nowhere'):
        backbone.add_task('other', ['nowhere'])
    assert backbone.fusion.tasks == ['old', 'new']


def test_parameter_merge_in_the_trunk_learns() -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a', 'b')
    backbone.set_fusion(dict(type='ParameterMerge'))
    x = pictures()
    merged = backbone(x)[-1]
    merged.square().mean().backward()
    assert backbone.fusion.logits['default'].grad.abs().sum() > 0
    with torch.no_grad():
        backbone.fusion.logits['default'][:] = torch.tensor([200., -200.])
        alone = backbone(x)[-1]
        with backbone.only('a'):
            torch.testing.assert_close(alone, backbone(x)[-1])


def test_a_checkpoint_of_modules_of_another_width_is_refused() -> None:
    backbone = fused(['a', 'b'], dict(type='EnsMoE'))
    state = backbone.state_dict()
    key = next(k for k in state if '.down.' in k and state[k].dim() > 1)
    state[key] = state[key][:1]
    with pytest.raises(ValueError, match="Module 'a' of the checkpoint"):
        backbone.load_state_dict(state, strict=False)


def test_modules_that_a_learning_task_weighs_are_tuned(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, 'a', 'b')
    for name in 'ab':
        save_module(midstream, name, str(tmp_path / 'zoo'))
    backbone = build_backbone(
        trunk, zoo=str(tmp_path / 'zoo'), modules=['a', 'b'],
        tune_modules=True,
        fusion=dict(type='EnsMoE', tasks=dict(t=['a'], u=['a', 'b'])))

    def learning() -> set:
        return {
            name for name in 'ab' if any(
                p.requires_grad
                for p in backbone.bank.members[name].parameters())
        }

    assert learning() == {'a'}
    backbone.select_task('u')
    assert learning() == {'a'}
    backbone.learn_tasks(['t', 'u'])
    assert learning() == {'a', 'b'}
    sum(out.sum() for out in backbone(pictures())).backward()
    assert all(p.grad is not None for p in backbone.parameters()
               if p.requires_grad)


def test_a_kind_of_adapter_can_be_given_as_a_class() -> None:
    backbone = build_backbone(
        new_module='n', adapter=dict(type=ConvPass))
    assert backbone.bank.adapter_cfg('n')['type'] == 'ConvPass'


def test_a_trunk_of_random_values_is_told(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = []
    monkeypatch.setattr('vim_mm.models.backbones.trunk.print_log',
                        lambda text, **_: said.append(text))
    build_backbone()
    assert 'is given no weights' in said[0]
    said.clear()
    build_backbone(save_trunk(tmp_path / 'trunk.pth'))
    assert not said

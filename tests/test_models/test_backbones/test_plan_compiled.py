# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A backbone with bank and fusion compiles to one graph, and to few of them.
"""

from typing import Dict, Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from _tiny import build_backbone, compiles, fill, first_of, vit
from vim_mm.models.backbones import ViMBackbone

pytestmark = compiles
KINDS: Dict[str, dict] = dict(
    ConvPass=dict(type='ConvPass', hidden_dims=4),
    BottleneckAdapter=dict(type='BottleneckAdapter', act='SiLU', scale=0.5),
    LoRA=dict(type='LoRA', rank=3, alpha=6),
    PluginNeck=dict(type='PluginNeck', hidden_dims=4))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def backbone_of(kind: str, number: int, learns: bool = True,
                fusion: str = 'EnsMoE') -> ViMBackbone:
    """One block; all modules but the last are frozen."""
    torch.manual_seed(0)
    arch = dict(
        embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
    backbone = build_backbone(
        vit(arch=arch, out_indices=[0]), adapter=KINDS[kind],
        new_module='new')
    fill(backbone.trunk, 0.2)
    dims = backbone.bank.dims_of('new')
    cfg = backbone.bank.adapter_cfg('new')
    for index in range(number - 1):
        backbone.bank.add(f'm{index}', cfg, dims, trainable=False)
    for index, name in enumerate(backbone.bank.names):
        fill(backbone.bank.members[name], 0.4, seed=index)
    backbone.bank.requires_grad_(False)
    backbone.bank.members['new'].requires_grad_(learns)
    backbone.set_fusion(dict(type=fusion, tasks=['x', 'y']))
    fill(backbone.fusion, 1.)
    return backbone.double().train()


def pictures(height: int = 56, width: int = 56) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def compiled(backbone: ViMBackbone, backend: str = 'eager') -> nn.Module:
    return torch.compile(backbone, backend=backend, fullgraph=True)


def graphs() -> int:
    assert not counters['graph_break']
    return counters['stats']['unique_graphs']


@pytest.mark.parametrize('kind', first_of(list(KINDS)))
@pytest.mark.parametrize('number', first_of([4, 16, 1]))
def test_one_graph(kind: str, number: int) -> None:
    backbone = backbone_of(kind, number)
    fast = compiled(backbone)
    with torch.no_grad():
        got, = fast(pictures())
        assert graphs() == 1
        expected, = backbone(pictures())
        close(got, expected)
        for size in ((28, 70), (70, 28)):
            close(fast(pictures(*size))[0], backbone(pictures(*size))[0])
    # a size, then any size
    assert graphs() <= 3


@pytest.mark.slow
@pytest.mark.parametrize('kind, fusion', [
    *((kind, 'EnsMoE') for kind in KINDS), ('ConvPass', 'RoutedMoE')
])
def test_outputs_and_gradients(kind: str, fusion: str) -> None:
    backbone = backbone_of(kind, 3, fusion=fusion)
    fast = compiled(backbone, 'aot_eager')
    params = [p for p in backbone.parameters() if p.requires_grad]
    results = []
    for model in (fast, backbone):
        output, = model(pictures())
        grads = torch.autograd.grad(output.square().sum(), params)
        results.append([output.detach(), *grads])
    assert graphs() == 1 and all(tensor.any() for tensor in results[1])
    for got, expected in zip(*results):
        close(got, expected)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_graphs_are_few() -> None:
    """One for each mode and task, however often these change."""
    backbone = backbone_of('ConvPass', 3)
    fast = compiled(backbone)
    backbone.learn_tasks(['x', 'y'])
    for _ in range(3):
        for task in 'xy':
            backbone.select_task(task)
            backbone.train()
            fast(pictures())
            backbone.eval()
            with torch.no_grad():
                fast(pictures())
    # autograd on and off, and training or not, by two tasks
    assert graphs() <= 4


@pytest.mark.slow
def test_a_context_has_a_graph_of_its_own() -> None:
    backbone = backbone_of('ConvPass', 3).eval()
    fast = compiled(backbone)
    with torch.no_grad():
        for _ in range(2):
            for modules in ((), ('m0', ), ('m1', 'new')):
                with backbone.only(*modules):
                    close(fast(pictures())[0], backbone(pictures())[0])
            with backbone.for_tasks(['x', 'y']):
                close(fast(pictures())[0], backbone(pictures())[0])
            close(fast(pictures())[0], backbone(pictures())[0])
    assert graphs() == 5


def _load(backbone: ViMBackbone) -> None:
    state = backbone.state_dict()
    state = {k: v * 2 if v.is_floating_point() else v
             for k, v in state.items()}
    backbone.load_state_dict(state)


EVENTS = dict(
    add=lambda b: (b.bank.add('z', KINDS['ConvPass'], b.bank.dims_of('new')),
                   fill(b.bank.members['z']), b.add_task('z', ['z', 'm0']),
                   b.select_task('z')),
    remove=lambda b: (b.set_fusion(dict(type='EnsMoE', tasks=dict(x=['m0']))),
                      b.bank.remove('m1')),
    set_fusion=lambda b: b.set_fusion(dict(type='FixedFusion')),
    select_task=lambda b: b.select_task('y'),
    learn_tasks=lambda b: (b.learn_tasks(['y']), b.select_task('y')),
    learn_nothing=lambda b: b.learn_tasks([]),
    set_logits=lambda b: b.fusion.set_logits(
        'x', torch.tensor([1., -1., 0.], dtype=torch.float64)),
    load_state_dict=_load,
    requires_grad=lambda b: b.requires_grad_(True),
    requires_grad_of_the_bank=lambda b: b.bank.requires_grad_(True),
    step=lambda b: fill(b.bank.members['new'], seed=8),
    step_of_gates=lambda b: fill(b.fusion, seed=8),
    single=lambda b: b.float())


@pytest.mark.parametrize('name', first_of([*EVENTS], 2))
def test_a_compiled_backbone_follows(name: str) -> None:
    backbone = backbone_of('ConvPass', 3)
    fast = compiled(backbone)
    fast(pictures())
    EVENTS[name](backbone)
    backbone.double().eval()
    params = [p for p in backbone.parameters() if p.requires_grad]
    results = []
    for model in (fast, backbone):
        output, = model(pictures())
        grads = [output.detach()]
        if output.requires_grad:
            grads += torch.autograd.grad(
                output.square().sum(), params, allow_unused=True)
        results.append(grads)
    for got, expected in zip(*results, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            close(got, expected)

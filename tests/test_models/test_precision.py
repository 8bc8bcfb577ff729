# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How far low precision may lead away, and that the same run is the same.

A number that is rounded to b bits is off by 2^-b of itself at most: that is
the unit ``u``, with b = 8 for bfloat16 and 11 for float16. Errors of n
roundings in a row, independent of each other, add up to about u sqrt(n / 3)
of the result: 2 u for the about 10 roundings of an adapter or an expert, 4 u
for the about 50 of a trunk of three blocks with modules. The bounds are twice
that. An operation that loses more, such as a sum over many numbers that is
kept in low precision, or a softmax of it, is beyond them.

Kinds of module and of fusion are those that are registered.
"""

from typing import Callable, Dict, List, Optional

import pytest
import torch
from _moe_tiny import build_moe
from torch import Tensor, nn

from _recompute import ALL, pictures, side_of
from _tiny import fill, vit
from vim_mm.models.adapters import build_adapter
from vim_mm.models.adapters.base_adapter import BaseAdapter
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.fusion import BaseFusion
from vim_mm.models.moe import DISPATCHES, moe_layers
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS

UNITS = {torch.bfloat16: 2.**-8, torch.float16: 2.**-11}
LAYER, TRUNK = 4, 8


def kinds_of(base: type) -> List[str]:
    return sorted({
        kind.__name__
        for kind in MODELS.module_dict.values()
        if isinstance(kind, type) and issubclass(kind, base)
        and kind.__module__.startswith('vim_mm.')  # tests register others
    })


KINDS, FUSIONS = kinds_of(BaseAdapter), kinds_of(BaseFusion)
ADAPTERS: Dict[str, dict] = {
    **{kind: dict(type=kind) for kind in KINDS},
    'groups': dict(type='ConvPass', hidden_dims=8, groups=2, scale=2.)
}
MOES: Dict[str, dict] = dict(
    ffn={}, attention=dict(attention=True),
    davit=dict(
        type='vim_mm.MoEDaViT',
        arch=dict(embed_dims=8, num_heads=[1, 1, 2, 2], depths=[1, 1, 1, 1]),
        num_experts=4))

low_precision = pytest.mark.parametrize('dtype', UNITS, ids=str)


def deviation(run: Callable[[], List[Tensor]],
              dtype: torch.dtype) -> List[float]:
    """Of each result under autocast, in units, relative to its norm."""
    exact = run()
    with torch.autocast('cpu', dtype):
        low = run()
    assert len(exact) == len(low)
    return [
        float((a.float() - b).norm() / b.norm() / UNITS[dtype])
        for a, b in zip(low, exact)
    ]


def check(found: List[float], bound: float) -> None:
    # what is rounded at all is not equal
    assert all(0.1 < each < bound for each in found), found


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def backbone_of(kind: str = 'ConvPass',
                fusion: str = 'EnsMoE',
                trunk: Optional[dict] = None,
                drop_rate: float = 0.) -> ViMBackbone:
    """Two tasks over a frozen and a learning module of a kind."""
    torch.manual_seed(0)
    trunk = trunk or vit()
    backbone = MODELS.build(dict(
        type='vim_mm.ViMBackbone', trunk=trunk, probe_size=side_of(trunk)))
    fill(backbone.trunk, .1)
    for seed, name in enumerate('ab'):
        backbone.add(name, dict(type=kind, drop_rate=drop_rate))
        fill(backbone.bank.members[name], .2, seed)
    backbone.bank.members['a'].requires_grad_(False)
    backbone.set_fusion(dict(type=fusion, tasks=['x', 'y']))
    fill(backbone.fusion, 1.)
    backbone.learn_tasks(['x', 'y'])
    return backbone


@low_precision
@pytest.mark.parametrize('kind', ADAPTERS)
def test_adapters(kind: str, dtype: torch.dtype) -> None:
    adapter = build_adapter(ADAPTERS[kind], 64)
    fill(adapter, .2)
    params, x = list(adapter.parameters()), tokens(2, 17, 64)

    def run() -> List[Tensor]:
        delta = adapter(x, (4, 4))
        delta = delta[0] if isinstance(delta, tuple) else delta
        loss = (delta.float() * torch.flip(x, [2])).sum()
        return [delta, *torch.autograd.grad(loss, params)]

    delta, *grads = deviation(run, dtype)
    check([delta], LAYER)
    check(grads, TRUNK)


@low_precision
@pytest.mark.parametrize(('kind', 'fusion'), [
    *[(kind, 'EnsMoE') for kind in KINDS],
    *[('ConvPass', fusion) for fusion in FUSIONS if fusion != 'EnsMoE']])
def test_modules_over_a_trunk(kind: str, fusion: str,
                              dtype: torch.dtype) -> None:
    backbone = backbone_of(kind, fusion).eval()
    backbone.select_task('x')
    x = pictures()
    with torch.no_grad():
        check(deviation(lambda: list(backbone(x)), dtype), TRUNK)


@low_precision
@pytest.mark.parametrize('trunk', ALL)
def test_trunks(trunk: str, dtype: torch.dtype) -> None:
    cfg = ALL[trunk]
    backbone = backbone_of(trunk=cfg).eval()
    x = pictures(side_of(cfg), side_of(cfg))
    with torch.no_grad():
        check(deviation(lambda: list(backbone(x)), dtype), TRUNK)


@low_precision
@pytest.mark.parametrize('dispatch', DISPATCHES)
@pytest.mark.parametrize('moe', MOES)
def test_experts(moe: str, dispatch: str, dtype: torch.dtype) -> None:
    """Routers compute in float32, so the same experts are chosen."""
    trunk = moe_of(moe, dispatch)
    for layer in moe_layers(trunk).values():
        x = tokens(2, 16, layer.dims)
        with torch.no_grad():
            check(deviation(lambda: [layer(x)], dtype), LAYER)


def moe_of(moe: str, dispatch: str) -> nn.Module:
    cfg = dict(MOES[moe])
    if 'type' in cfg:
        torch.manual_seed(0)
        trunk = MODELS.build(dict(cfg, tasks=['cls', 'seg']))
        fill(trunk, .2)
        trunk.eval()
    else:
        trunk = build_moe(**cfg)
    select_task(trunk, 'seg')
    for layer in moe_layers(trunk).values():
        layer.experts.dispatch = dispatch
    return trunk


# ---------------------------------------------------------------- determinism


def same_again(build: Callable[[], nn.Module], *shape: int) -> None:
    """Two models of one seed, trained alike, are one, bit for bit."""
    before, results = {}, []
    for _ in range(2):
        torch.manual_seed(3)
        model = build()
        model.train()  # of mm* it returns nothing
        before = {k: v.clone() for k, v in model.state_dict().items()}
        torch.manual_seed(4)  # modules drop out
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss = sum(level.square().mean()
                       for level in model(pictures(*shape)))
            loss.backward()
            optimizer.step()
        results.append(model.state_dict())
    assert all(torch.equal(results[0][k], results[1][k]) for k in before)
    assert not all(torch.equal(results[0][k], before[k]) for k in before)


@pytest.mark.parametrize(('kind', 'fusion'), [
    *[(kind, 'EnsMoE') for kind in KINDS],
    *[('ConvPass', fusion) for fusion in FUSIONS if fusion != 'EnsMoE']])
def test_the_same_again(kind: str, fusion: str) -> None:
    drop_rate = 0. if 'Merge' in fusion else .2  # parameters do not drop out
    same_again(lambda: backbone_of(kind, fusion, drop_rate=drop_rate))


@pytest.mark.parametrize('trunk', ALL)
def test_trunks_give_the_same_again(trunk: str) -> None:
    cfg = ALL[trunk]
    same_again(lambda: backbone_of(trunk=cfg), side_of(cfg), side_of(cfg))


@pytest.mark.parametrize('dispatch', DISPATCHES)
@pytest.mark.parametrize('moe', MOES)
def test_experts_give_the_same_again(moe: str, dispatch: str) -> None:
    same_again(lambda: moe_of(moe, dispatch))

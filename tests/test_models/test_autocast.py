# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Weights that are cast once give the bits of weights cast in every pass."""

from copy import deepcopy
from typing import Callable, Dict, List

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from _recompute import ALL, pictures, side_of
from _tiny import build_backbone, fill, vit
from vim_mm.models.autocast import LAYERS, CastOnce, cast_once
from vim_mm.models.backbones import build_trunk

DTYPES = [torch.bfloat16, torch.float16]


def trunk_of(cfg: dict) -> nn.Module:
    torch.manual_seed(0)
    trunk = build_trunk(dict(cfg))
    trunk.eval()  # of mm* it returns nothing
    fill(trunk, 0.1)
    return trunk


def levels(trunk: nn.Module, dtype: torch.dtype, side: int = 56,
           grad: bool = False) -> List[Tensor]:
    with torch.autocast('cpu', dtype), torch.set_grad_enabled(grad):
        return list(trunk(pictures(side, side)))


def same(one: List[Tensor], other: List[Tensor]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


class Casts(TorchDispatchMode):
    """Counts casts of floating-point tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def casts(run: Callable) -> int:
    with Casts() as counter:
        run()
    return counter.count


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('kind', ALL)
def test_the_bits_of_plain_autocast(kind: str, dtype: torch.dtype) -> None:
    side = side_of(ALL[kind])
    plain = trunk_of(ALL[kind])
    once = deepcopy(plain)
    cast_once(once)
    before = levels(plain, dtype, side)
    for grad in (False, True, False):
        assert same(levels(once, dtype, side, grad), before)
    # other precisions in turn
    for other in (*DTYPES, dtype):
        assert same(levels(once, other, side), levels(plain, other, side))
    with torch.inference_mode():
        assert same(levels(once, dtype, side), before)
    x = pictures(side, side)
    assert same(once(x), plain(x))  # outside of autocast


def test_a_learning_input_gets_the_same_gradient() -> None:
    plain = trunk_of(vit())
    once = deepcopy(plain)
    cast_once(once)
    grads = []
    for trunk in (plain, once, once):
        x = pictures().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            outputs = trunk(x)
        sum(level.float().square().sum() for level in outputs).backward()
        grads.append(x.grad)
    assert grads[0].any()
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


@pytest.mark.parametrize('kind', ALL)
def test_each_weight_is_cast_once(kind: str) -> None:
    side = side_of(ALL[kind])
    plain = trunk_of(ALL[kind])
    once = deepcopy(plain)
    cast_once(once)
    weights = sum(
        tensor is not None for layer in once.modules()
        if isinstance(layer, LAYERS) for tensor in (layer.weight, layer.bias))
    first, second = (
        casts(lambda: levels(once, torch.bfloat16, side)) for _ in range(2))
    assert first - second == weights
    assert casts(lambda: levels(plain, torch.bfloat16, side)) == first


def _replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)


def _set_data(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data * 2


def _in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.bias.add_(1)


def _load(layer: nn.Linear) -> None:
    layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()})


def _assign(layer: nn.Linear) -> None:
    state = {k: v * 2 for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


CHANGES = [
    _replace, _set_data, _in_place, _load, _assign,
    lambda layer: layer.half().float(),
    lambda layer: layer.double(),
    lambda layer: layer.requires_grad_(True),
    lambda layer: layer.weight.requires_grad_(True),
    lambda layer: layer.bias.requires_grad_(True)
]


def test_other_weights_in_the_same_memory() -> None:
    """As after `half().float()`, where the allocator so chooses."""
    plain = trunk_of(vit())
    once = deepcopy(plain)
    cast_once(once)
    layers = [trunk.layers[1].attn.qkv for trunk in (plain, once)]
    memory = [layer.weight.detach().numpy().copy() for layer in layers]
    for factor in (1, 2):
        for layer, values in zip(layers, memory):
            values *= factor
            layer.weight.data = torch.from_numpy(values)
        assert same(*(levels(t, torch.bfloat16) for t in (plain, once)))


@pytest.mark.parametrize('change', CHANGES)
def test_changes_are_noticed(change: Callable) -> None:
    plain = trunk_of(vit())
    once = deepcopy(plain)
    cast_once(once)
    levels(once, torch.bfloat16)
    for trunk in (plain, once):
        change(trunk.layers[1].attn.qkv)
    results = []
    for trunk in (plain, once):
        try:
            results.append(levels(trunk, torch.bfloat16, grad=True))
        except RuntimeError as error:
            results.append(str(error))
    if isinstance(results[0], str):  # torch refuses it, and so do we
        assert results[0] == results[1]
        return
    assert same(*results)
    params = [p for p in plain.parameters() if p.requires_grad]
    if params:
        for trunk in (plain, once):
            sum(level.float().sum()
                for level in levels(trunk, torch.bfloat16, grad=True)
                ).backward()
        for own, other in zip(plain.parameters(), once.parameters()):
            assert (own.grad is None) == (other.grad is None)
            assert own.grad is None or torch.equal(own.grad, other.grad)


def test_a_copy_casts_its_own() -> None:
    once = trunk_of(vit())
    cast_once(once)
    before = levels(once, torch.bfloat16)
    copy = deepcopy(once)
    fill(once, 0.3, seed=4)
    assert same(levels(copy, torch.bfloat16), before)
    forwards: Dict[nn.Module, CastOnce] = {
        part: vars(part)['forward'] for part in copy.modules()
        if 'forward' in vars(part)
    }
    assert forwards and all(f.layer is part for part, f in forwards.items())


def test_nothing_is_saved() -> None:
    backbone = build_backbone(new_module='n', save_trunk=True)
    before = list(backbone.state_dict())
    levels(backbone, torch.bfloat16)
    assert list(backbone.state_dict()) == before
    assert not any('CastOnce' in key or '_kept' in key for key in before)


def test_layers_with_a_forward_of_their_own_are_left_alone() -> None:

    class Standardised(nn.Linear):

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean()
            return nn.functional.linear(x, weight, self.bias)

    trunk = nn.Sequential(Standardised(4, 4), nn.Linear(4, 4))
    cast_once(trunk)
    assert 'forward' not in vars(trunk[0]) and 'forward' in vars(trunk[1])

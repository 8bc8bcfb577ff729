# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The bank against a loop over its modules."""

from typing import Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from torch import Tensor

from _tiny import fill
from vim_mm.models.adapters import AdapterBank, BaseAdapter
from vim_mm.models.adapters.low_rank_adapter import Packed
from vim_mm.registry import MODELS

CFG = dict(type='ConvPass', hidden_dims=3)
SLOTS = {'layers.0.attn': 8, 'layers.0.ffn': 8}


@MODELS.register_module(name='TestScale', force=True)
class Scale(BaseAdapter):
    """A second kind of adapter, without a wide form of its own."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.zeros(dims))

    def forward(self, x: Tensor, grid: tuple) -> Tensor:
        return x * self.factor


def make(*names: str, cfg: dict = CFG, dims: dict = SLOTS) -> AdapterBank:
    bank = AdapterBank()
    for name in names:
        bank.add(name, cfg, dims)
        fill(bank.members[name], seed=ord(name[-1]))
    return bank.double()


def loop(bank: AdapterBank, slot: str, x: Tensor, grid: tuple, names: list,
         gates: Optional[list]) -> Tensor:
    total = torch.zeros_like(x)
    for index, name in enumerate(names):
        if slot in bank.slots_of(name):
            adapter = bank.members[name][slot.replace('.', '-')]
            weight = 1. if gates is None else gates[index]
            total = total + weight * adapter(x, grid)
    return total


@settings(max_examples=20, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(['h3', 'h5', 'scale', 'elsewhere', 'dropout']),
        min_size=1,
        max_size=6),
    gated=st.booleans())
def test_mixed_modules_equal_the_loop(kinds: list, gated: bool) -> None:
    configs = dict(
        h3=CFG,
        h5=dict(type='ConvPass', hidden_dims=5, scale=2.),
        scale=dict(type='TestScale'),
        elsewhere=CFG,
        dropout=dict(CFG, drop_rate=0.5))
    torch.manual_seed(0)
    bank = AdapterBank()
    for index, kind in enumerate(kinds):
        dims = {'layers.0.ffn': 8} if kind == 'elsewhere' else SLOTS
        bank.add(f'm{index}', configs[kind], dims)
        fill(bank.members[f'm{index}'], seed=index)
    bank.double().eval()
    x, names = torch.randn(2, 7, 8).double(), bank.names[::-1]
    gates = torch.rand(len(names)).double() if gated else None
    for slot in SLOTS:
        delta = bank(slot, x, (2, 3), names, gates)
        expected = loop(bank, slot, x, (2, 3), names, gates)
        if delta is None:
            assert set(kinds) == {'elsewhere'} and slot == 'layers.0.attn'
        else:
            torch.testing.assert_close(delta, expected)


def test_a_frozen_and_a_learning_module_do_not_share_dropout() -> None:
    bank = AdapterBank()
    cfg = dict(CFG, drop_rate=0.9)
    for name, trainable in (('frozen', False), ('learning', True)):
        bank.add(name, cfg, SLOTS, trainable=trainable)
        fill(bank.members[name])
    bank.train()
    x, gates = torch.randn(1, 6, 8), torch.tensor([1., 0.])

    def run(*names: str, gates: Tensor = None) -> Tensor:
        return bank('layers.0.ffn', x, (2, 3), names, gates)

    both = ('frozen', 'learning')
    # what is fixed has no dropout, what learns has it, in any order
    torch.testing.assert_close(run(*both, gates=gates), run('frozen'))
    torch.testing.assert_close(
        run(*both[::-1], gates=gates.flip(0)), run('frozen'))
    learned = [
        run(*both, gates=gates.flip(0)),
        run(*both[::-1], gates=gates)
    ]
    without_dropout = bank.eval()('layers.0.ffn', x, (2, 3), both[1:], None)
    assert not any(torch.allclose(d, without_dropout) for d in learned)


def test_only_the_named_modules_run() -> None:
    bank = make('a', 'b', 'c')
    x = torch.randn(1, 7, 8).double()
    alone = bank('layers.0.ffn', x, (2, 3), ['b'], None)
    gates = torch.tensor([0., 1., 0.]).double()
    every = bank('layers.0.ffn', x, (2, 3), bank.names, gates)
    torch.testing.assert_close(every, alone)
    assert bank('layers.9.ffn', x, (2, 3), ['b'], None) is None


def test_export_and_add_make_a_copy() -> None:
    bank = make('a').float()
    tensors = bank.export('a')
    assert set(tensors) == {
        f'{slot}.{param}.{end}'
        for slot in SLOTS for param in ('down', 'conv', 'up')
        for end in ('weight', 'bias')
    }
    assert bank.adapter_cfg('a') == CFG and bank.slots_of('a') == list(SLOTS)
    bank.add('b', bank.adapter_cfg('a'), SLOTS, tensors, trainable=False)
    assert all(not p.requires_grad for p in bank.members['b'].parameters())
    assert all(p.requires_grad for p in bank.members['a'].parameters())
    fill(bank.members['a'], seed=99)
    for key, value in bank.export('b').items():
        assert torch.equal(value, tensors[key])
        assert not torch.equal(value, bank.export('a')[key])


def test_adding_and_removing_touch_no_other_module() -> None:
    bank = make('a', 'b')
    before = bank.export('a')
    x = torch.randn(1, 7, 8).double()
    delta = bank('layers.0.ffn', x, (2, 3), ['a'], None)
    bank.remove('b')
    bank.add('c', CFG, SLOTS)
    assert bank.names == ['a', 'c']
    assert all(torch.equal(v, before[k]) for k, v in bank.export('a').items())
    assert torch.equal(
        delta, bank('layers.0.ffn', x, (2, 3), ['a'], None))


def test_frozen_modules_stay_in_eval_mode() -> None:
    bank = make('a')
    bank.add('b', CFG, SLOTS, trainable=False)
    bank.train()
    assert all(m.training for m in bank.members['a'].modules())
    assert not any(m.training for m in bank.members['b'].modules())


@pytest.mark.parametrize(
    'name', ['', 'a.b', 'a b', '../a', '_a', '-a', 'é', 'keys', 'train',
             'a' * 101])
def test_names_that_no_zoo_or_model_can_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match='cannot name a module'):
        AdapterBank().add(name, CFG, SLOTS)


def test_mistakes_are_sentences_and_change_nothing() -> None:
    bank = make('a')
    with pytest.raises(ValueError, match="already holds a module 'a'"):
        bank.add('a', CFG, SLOTS)
    with pytest.raises(ValueError, match="no module 'z'; it holds"):
        bank.remove('z')
    tensors = bank.export('a')
    with pytest.raises(ValueError, match="'b' do not fit its adapter"):
        bank.add('b', dict(CFG, hidden_dims=4), SLOTS, tensors)
    missing = dict(list(tensors.items())[1:])
    with pytest.raises(ValueError, match="'b' do not fit its adapter"):
        bank.add('b', CFG, SLOTS, missing)
    with pytest.raises(ValueError, match='belongs to no slot'):
        bank.add('b', CFG, SLOTS, dict(tensors, other=torch.zeros(1)))
    assert bank.names == ['a'] and list(bank.members) == ['a']


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain', 'vim_mm'])
def test_a_bare_type_is_ours_in_every_scope(scope: str) -> None:
    init_default_scope(scope)
    bank = make('a', 'b')
    assert bank.adapter_cfg('a') == CFG and bank.names == ['a', 'b']


def merge_by_hand(bank: AdapterBank, slot: str, x: Tensor, grid: tuple,
                  names: list, gates: Tensor) -> Tensor:
    """Average every parameter with plain sums, then run one adapter."""
    single = make('mean')
    for key, value in single.members['mean'].named_parameters():
        value.data = sum(
            g * dict(bank.members[n].named_parameters())[key].data
            for g, n in zip(gates, names))
    return single(slot, x, grid, ['mean'], None)


def test_merge_runs_one_adapter_of_averaged_parameters() -> None:
    bank = make('a', 'b', 'c')
    fill(bank)
    x, names = torch.randn(2, 7, 8).double(), ['a', 'b', 'c']
    gates = torch.tensor([.2, .3, .5]).double()
    merged = bank('layers.0.ffn', x, (2, 3), names, gates, merge=True)
    torch.testing.assert_close(
        merged, merge_by_hand(bank, 'layers.0.ffn', x, (2, 3), names, gates))
    # adapters are not linear: the ensemble is another function
    ensemble = bank('layers.0.ffn', x, (2, 3), names, gates)
    assert (merged - ensemble).abs().max() > 1e-3


def test_merge_equals_the_ensemble_for_one_hot_gates() -> None:
    bank = make('a', 'b')
    fill(bank)
    x, gates = torch.randn(2, 7, 8).double(), torch.tensor([0., 1.]).double()
    args = ('layers.0.attn', x, (2, 3), ['a', 'b'], gates)
    torch.testing.assert_close(bank(*args, merge=True), bank(*args))


def test_merge_of_unequal_modules_is_refused() -> None:
    bank = make('a')
    bank.add('wider', dict(CFG, hidden_dims=4), SLOTS)
    bank.add('louder', dict(CFG, scale=2.), SLOTS)
    x, gates = torch.randn(1, 6, 8).double(), torch.tensor([.5, .5]).double()
    bank.add('elsewhere', CFG, {'layers.0.ffn': 8})
    for other, words in (('wider', 'no common parameters'),
                         ('louder', 'output scales'),
                         ('elsewhere', "'layers.0.attn' .*no common")):
        with pytest.raises(ValueError, match=words):
            bank('layers.0.attn', x, (2, 3), ['a', other], gates, merge=True)


@pytest.mark.parametrize('kind', [
    'torch.hub.load', 'os.system', 'ViMBackbone', 'mmdet.FPN', 'builtins.exec',
    None
])
def test_a_card_can_name_adapters_only(kind: str) -> None:
    bank = AdapterBank()
    with pytest.raises(ValueError, match='no kind of adapter'):
        bank.add('evil', dict(type=kind, source='local'), SLOTS)
    assert bank.names == []


@pytest.mark.parametrize('num', [1, 2, 3, 8, 17])
def test_biases_have_the_same_bits_alone_and_stacked(num: int) -> None:
    """Products of matrices do not on every CPU."""
    gates, bias = torch.randn(6, num), torch.randn(6, num, 48)
    together = Packed.biases(gates, bias)
    for row in range(6):
        assert torch.equal(Packed.biases(gates[row], bias[row]), together[row])
    torch.testing.assert_close(
        together, torch.einsum('gk,gkd->gd', gates, bias))

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A run goes on only from the state of an optimizer and schedules like its."""

import copy
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest
import torch
from _hostile import ESCAPE, ODD_VALUES
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from vim_mm.engine.optimizer_state import check_optimizer
from vim_mm.engine.resume import keep_numbers
from vim_mm.engine.schedules import check_schedules
from vim_mm.utils.checkpoint import CheckpointError

NAN = float('nan')
ODD = dict(ODD_VALUES, nan=NAN, infinite=-float('inf'), code='__import__("x")',
           tensor=torch.ones(3), complex=1j, bytes=b'x', set={1})
OPTIMIZERS_TRIED: Dict[str, dict] = dict(
    adamw=dict(type='AdamW', lr=.1, weight_decay=.1),
    amsgrad=dict(type='Adam', lr=.1, amsgrad=True),
    sgd=dict(type='SGD', lr=.1),
    momentum=dict(type='SGD', lr=.1, momentum=.9),
    rmsprop=dict(type='RMSprop', lr=.1),
    adafactor=dict(type='torch.optim.Adafactor', lr=.1),
    lamb=dict(type='mmpretrain.Lamb', lr=.1),
    lbfgs=dict(type='LBFGS', lr=.1))
SCHEDULES: Dict[str, dict] = dict(
    cosine=dict(type='CosineAnnealingLR', T_max=9),
    steps=dict(type='MultiStepLR', milestones=[2, 3]),
    one_cycle=dict(type='OneCycleLR', eta_max=.1, total_steps=9),
    poly=dict(type='PolyLR', begin=1, end=7),
    plateau=dict(type='ReduceOnPlateauLR', monitor='loss'))


def wrapper(kind: dict, width: int = 3, trained: bool = False,
            groups: int = 1) -> OptimWrapper:
    torch.manual_seed(0)
    nets = [nn.Linear(width, 2) for _ in range(groups)]
    params = [dict(params=list(net.parameters())) for net in nets]
    found = OptimWrapper(OPTIMIZERS.build(dict(kind, params=params[0][
        'params'] if groups == 1 else params)))

    def closure() -> torch.Tensor:
        loss = sum(net(torch.ones(1, width)).sum() for net in nets)
        loss.backward()
        return loss

    if trained:
        closure()
        found.step(**({'closure': closure} if 'LBFGS' in kind['type'] else {}))
    return found


def state(kind: dict, **kwargs: Any) -> dict:
    return copy.deepcopy(wrapper(kind, trained=True, **kwargs).state_dict())


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(
        one, torch.Tensor) else one == other


@pytest.mark.parametrize('kind', OPTIMIZERS_TRIED.values(),
                         ids=OPTIMIZERS_TRIED)
def test_its_own_is_taken_as_it_is(kind: dict) -> None:
    for own in (wrapper(kind), wrapper(kind, trained=True)):
        given = state(kind)
        expected = copy.deepcopy(given)
        check_optimizer(own, given, 'x.pth')
        for group in (*given['param_groups'], *expected['param_groups']):
            assert group.pop('foreach', None) is None
        assert equal(given, expected)
        own.load_state_dict(given)


@pytest.mark.parametrize('first', ['adamw', 'sgd', 'momentum', 'rmsprop'])
@pytest.mark.parametrize('then', ['adamw', 'sgd', 'momentum', 'rmsprop'])
def test_another_optimizer_is_refused(first: str, then: str) -> None:
    given = state(OPTIMIZERS_TRIED[first])
    own = wrapper(OPTIMIZERS_TRIED[then])
    if {first, then} <= {'sgd', 'momentum'}:  # a rate among the settings
        check_optimizer(own, given, 'x.pth')
    elif first != then:
        with pytest.raises(CheckpointError, match='x.pth cannot be gone on'):
            check_optimizer(own, given, 'x.pth')


@pytest.mark.parametrize('change, said', [
    (dict(width=4), 'has `exp_avg` tensor'),
    (dict(groups=2), 'is of 4 parameters in 2 groups, and the run has 2 in'),
])
def test_other_parameters_are_refused(change: dict, said: str) -> None:
    kind = OPTIMIZERS_TRIED['adamw']
    with pytest.raises(CheckpointError, match=said):
        check_optimizer(wrapper(kind), state(kind, **change), 'x.pth')


def places(value: Any, path: Tuple = ()) -> Iterator[Tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(
        value) if isinstance(value, (list, tuple)) else ()
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def exchanged(value: Any, path: Tuple, new: Any) -> Any:
    """A copy with another value at a place."""
    if not path:
        return new
    changed = copy.copy(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = exchanged(value[path[0]], path[1:], new)
    return type(value)(changed)


@pytest.mark.parametrize('name', ['adamw', 'momentum'])
def test_any_value_is_refused_or_can_be_stepped_on_with(name: str) -> None:
    kind = OPTIMIZERS_TRIED[name]
    good, refused, count = state(kind), 0, 0
    for path in places(good):
        for what, odd in ODD.items():
            given = copy.deepcopy(exchanged(good, path, odd))
            own = wrapper(kind, trained=True)
            count += 1
            if len(path) == 1 or len(path) == 2 or (
                    path[-1] == 'params' and not isinstance(odd, list)):
                continue  # its form is looked at before
            try:
                check_optimizer(own, given, 'x.pth')
            except CheckpointError as error:
                assert str(error).isprintable() and len(str(error)) < 1300
                refused += 1
                continue
            own.load_state_dict(given)
            own.step()
            rate, = own.get_lr()['lr']
            assert 0 <= rate < float('inf'), (path, what)
    assert refused > count / 3


def test_what_the_run_does_not_know_is_dropped() -> None:
    kind = OPTIMIZERS_TRIED['adamw']
    given, own = state(kind), wrapper(kind)
    given.update(step='text', base_param_settings=3., loss_scaler=1.)
    given['param_groups'][0].update(step=3, foreach='text', fused=True)
    check_optimizer(own, given, 'x.pth')
    assert given.keys() == {'state', 'param_groups'}
    assert given['param_groups'][0].keys() == own.param_groups[0].keys()
    assert given['param_groups'][0]['foreach'] is None
    # as of an earlier version of torch
    for key in ('foreach', 'maximize', 'decoupled_weight_decay'):
        given['param_groups'][0].pop(key, None)
    check_optimizer(own, given, 'x.pth')
    own.load_state_dict(given)
    own.step()


def test_several_optimizers() -> None:
    kind = OPTIMIZERS_TRIED['sgd']
    own = OptimWrapperDict(a=wrapper(kind), b=wrapper(kind))
    given = dict(a=state(kind), b=state(kind), c=3)
    check_optimizer(own, given, 'x.pth')
    assert given.keys() == {'a', 'b'}
    for bad in (dict(a=state(kind)), state(kind)):
        with pytest.raises(CheckpointError, match='and the run has'):
            check_optimizer(own, bad, 'x.pth')
    with pytest.raises(CheckpointError, match="is of .'a', 'b'."):
        check_optimizer(own['a'], given, 'x.pth')
    check_optimizer(dict(type='OptimWrapper'), {}, 'x.pth')  # not built yet


# ---------------------------------------------------------------- schedules


class Run:
    """What is asked of a runner."""

    def __init__(self, kind: dict) -> None:
        self.optim_wrapper = wrapper(OPTIMIZERS_TRIED['sgd'], trained=True)
        self.param_schedulers = [PARAM_SCHEDULERS.build(
            dict(kind, optimizer=self.optim_wrapper))]
        self.metric = dict(loss=1.)

    def step(self) -> None:
        self.optim_wrapper.step()
        scheduler, = self.param_schedulers
        takes = 'Plateau' in type(scheduler).__name__
        scheduler.step(*[self.metric] * takes)


@pytest.mark.parametrize('kind', SCHEDULES.values(), ids=SCHEDULES)
def test_any_state_of_a_schedule(kind: dict) -> None:
    first = Run(kind)
    first.step()
    good = first.param_schedulers[0].state_dict()
    refused = 0
    for key in [*good, 'step', 'optimizer', '_get_value', '__class__']:
        for what, odd in dict(ODD, own=good.get(key)).items():
            run, meta = Run(kind), dict(iter=1, epoch=0)
            given = dict(param_schedulers=[{**good, key: odd}], meta=meta)
            try:
                check_schedules(run, copy.deepcopy(given), 'x.pth')
                check_schedules(run, given, 'x.pth')
            except CheckpointError as error:
                assert what != 'own' and len(str(error)) < 1300
                refused += 1
                continue
            state, = given['param_schedulers']
            assert state.keys() <= good.keys()
            run.param_schedulers[0].load_state_dict(state)
            run.step()
            rate, = run.optim_wrapper.get_lr()['lr']
            assert abs(rate) < float('inf'), (key, what)
    assert refused > 2 * len(good)


# ----------------------------------------------------------------- the notes


NO_RUN = SimpleNamespace(work_dir='nowhere', hooks=[])


def curve(**parts: Any) -> HistoryBuffer:
    found = HistoryBuffer([1., 2.], [1, 1])
    vars(found).update(parts)
    return found


@pytest.mark.parametrize('make', [
    lambda: curve(_log_history='text'), lambda: curve(_log_history=[1, 2]),
    lambda: curve(_count_history=torch.ones(2).numpy()[:1]),
    lambda: curve(_log_history=torch.ones(2, 2).numpy()),
    lambda: vars(curve()).clear() or curve(_count_history=None), lambda: 3])
def test_curves_of_another_form_are_dropped(make: Callable) -> None:
    file = dict(meta={}, message_hub=dict(log_scalars=dict(
        a=curve(max_length='text', update=3), b=make())))
    keep_numbers(file, NO_RUN)
    scalars = file['message_hub']['log_scalars']
    assert list(scalars) == ['a'] and scalars['a'].max_length == 1000000
    scalars['a'].update(3.)
    assert scalars['a'].data[0].tolist() == [1, 2, 3]


def test_names_that_a_terminal_would_obey_are_dropped() -> None:
    hub = dict(
        log_scalars={ESCAPE: curve(), 3: curve(), 'a': curve()},
        runtime_info={ESCAPE: 1., 3: 1., 'b': 1.},
        resumed_keys={ESCAPE: True, 'a': True})
    file = dict(meta={}, message_hub=hub)
    keep_numbers(file, NO_RUN)
    kept = file['message_hub']
    assert [list(kept[key]) for key in hub] == [['a'], ['b'], ['a']]

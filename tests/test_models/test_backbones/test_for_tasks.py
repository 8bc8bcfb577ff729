# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A batch of several tasks, and threads that run different things."""

import threading
from copy import deepcopy
from typing import Callable, Dict, List

import pytest
import torch
from torch import Tensor

from _tiny import TWO_TASKS, add_modules, build_backbone, fill
from vim_mm.models.backbones import ViMBackbone

FUSIONS: Dict[str, dict] = dict(
    EnsMoE=dict(type='EnsMoE'),
    top=dict(type='EnsMoE', top_k=1, zero_module=True),
    LinearMoE=dict(type='LinearMoE'),
    FixedFusion=dict(type='FixedFusion', weights=dict(a=1., b=0., c=-.5)))


def backbone_of(fusion: str = 'EnsMoE', **adapter) -> ViMBackbone:
    torch.manual_seed(0)
    backbone = build_backbone()
    fill(backbone.trunk, 0.1)
    add_modules(backbone, 'a', 'b', **adapter)
    add_modules(backbone, 'c', trainable=True, **adapter)
    backbone.set_fusion(dict(FUSIONS[fusion], tasks=TWO_TASKS))
    fill(backbone.fusion, 1.)
    return backbone.eval()


def pictures(number: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(number, 3, 56, 56)


def alone(backbone: ViMBackbone, tasks: List[str]) -> Tensor:
    """The last level, every image by its own task."""
    outputs = []
    for task, x in zip(tasks, pictures(len(tasks))):
        backbone.select_task(task)
        outputs.append(backbone(x[None])[-1])
    backbone.select_task('x')
    return torch.cat(outputs)


@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('tasks', ['xyxy', 'yyxx', 'yyyy', 'x'])
@pytest.mark.parametrize('grad', [False, True])
def test_each_image_by_its_own_task(fusion: str, tasks: str,
                                    grad: bool) -> None:
    backbone = backbone_of(fusion)
    with torch.set_grad_enabled(grad):
        with backbone.for_tasks(list(tasks)):
            got = backbone(pictures(len(tasks)))[-1]
        expected = alone(backbone, list(tasks))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if grad:
        member = list(backbone.bank.members['c'].parameters())
        one, two = (
            torch.autograd.grad(
                out.square().mean(), member, allow_unused=True)
            for out in (got, expected))
        for first, second in zip(one, two):
            if second is None:  # no image's task weighs it
                assert first is None or not first.any()
            else:
                torch.testing.assert_close(
                    first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', ['LoRA', 'PluginNeck'])
def test_other_kinds(kind: str) -> None:
    cfg = dict(LoRA=dict(type='LoRA', rank=2),
               PluginNeck=dict(type='PluginNeck', hidden_dims=4))[kind]
    backbone = build_backbone(adapter=cfg, new_module='a')
    dims = backbone.bank.dims_of('a')
    for name in 'bc':
        backbone.bank.add(name, backbone.bank.adapter_cfg('a'), dims)
    fill(backbone.bank, 0.2)
    backbone.set_fusion(dict(type='EnsMoE', tasks=TWO_TASKS))
    fill(backbone.fusion, 1.)
    backbone.eval()
    with torch.no_grad(), backbone.for_tasks(['y', 'x', 'y']):
        got = backbone(pictures(3))[-1]
    with torch.no_grad():
        expected = alone(backbone, ['y', 'x', 'y'])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_training_a_mixed_batch_reaches_all_that_learns() -> None:
    backbone = backbone_of().train()
    backbone.learn_tasks(['x', 'y'])
    with backbone.for_tasks(['x', 'y']):
        backbone(pictures(2))[-1].square().sum().backward()
    params = [p for p in backbone.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in params)
    assert len(params) > len(backbone.fusion.logits) == 2


def _no_fusion(backbone: ViMBackbone) -> None:
    backbone.fusion = None


MISTAKES = [
    (['x', 'z'], lambda b: None, "no task 'z'.*knows"),
    ('xy', lambda b: None, 'give a list'),
    (['x', 'y'], _no_fusion, 'only with a `fusion`'),
    (['x', 'y'], lambda b: b.set_fusion(
        dict(type='RoutedMoE', tasks=TWO_TASKS)), 'RoutedMoE cannot weigh'),
    (['x', 'y'], lambda b: b.set_fusion(
        dict(type='ParameterMerge', tasks=dict(x=['a'], y=['b']))),
     'one batch for each task')
]


@pytest.mark.parametrize('tasks, change, sentence', MISTAKES)
def test_mistakes(tasks: object, change: Callable, sentence: str) -> None:
    backbone = backbone_of()
    change(backbone)
    with pytest.raises(ValueError, match=sentence):
        with backbone.for_tasks(tasks):
            pass


def test_another_number_of_images() -> None:
    backbone = backbone_of()
    with backbone.for_tasks(['x', 'y']):
        with pytest.raises(ValueError, match='batch of 3 .* tasks for 2'):
            backbone(pictures(3))
    backbone(pictures(3))  # nothing is left behind


def test_a_context_ends_with_an_error() -> None:
    backbone = backbone_of()
    with torch.no_grad():
        before = backbone(pictures())
        for context in (backbone.only('a'), backbone.for_tasks(['y'])):
            with pytest.raises(KeyError), context:
                raise KeyError
        assert all(map(torch.equal, backbone(pictures()), before))


# --------------------------------------------------------------- threads


def in_threads(works: List[Callable]) -> None:
    """Run all at once, ten times over; an error in one is an error here."""
    errors: List[BaseException] = []
    meet = threading.Barrier(len(works))

    def repeat(work: Callable) -> None:
        try:
            for _ in range(10):
                meet.wait(60)
                work()
        except BaseException as error:
            errors.append(error)
            meet.abort()

    threads = [threading.Thread(target=repeat, args=(w, )) for w in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def run(backbone: ViMBackbone) -> List[Tensor]:
    with torch.no_grad():
        return list(backbone(torch.linspace(-1, 1, 37632).view(4, 3, 56, 56)))


def test_copies_run_tasks_of_their_own() -> None:
    backbone = backbone_of()
    copies = {task: deepcopy(backbone) for task in TWO_TASKS}
    expected = {}
    for task, copy in copies.items():
        copy.select_task(task)
        expected[task] = run(copy)

    def work(task: str) -> None:
        copies[task].select_task(task)
        copies[task].train().eval()  # its plan is made anew
        assert all(map(torch.equal, run(copies[task]), expected[task]))

    in_threads([lambda t=task: work(t) for task in TWO_TASKS])


def test_a_context_belongs_to_its_thread() -> None:
    backbone = backbone_of()
    contexts: Dict[str, Callable] = dict(
        a=lambda: backbone.only('a'),
        bare=lambda: backbone.only(),
        mixed=lambda: backbone.for_tasks(['x', 'y', 'y', 'x']),
        task=lambda: backbone.for_tasks(['y'] * 4))
    expected = {}
    for name, context in contexts.items():
        with context():
            expected[name] = run(backbone)
    plain = run(backbone)

    def work(name: str) -> None:
        with contexts[name]():
            assert all(map(torch.equal, run(backbone), expected[name]))
        assert all(map(torch.equal, run(backbone), plain))

    in_threads([lambda n=name: work(n) for name in contexts])
    assert all(map(torch.equal, run(backbone), plain))

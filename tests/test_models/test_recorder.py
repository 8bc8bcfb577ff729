# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What parts of a model gave is kept once, with the graph, and no longer."""

import pickle
import threading
from copy import deepcopy
from typing import Dict

import pytest
import torch
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vim_mm.models.recorder import recording


class Block(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 1.) -> Tensor:
        return x + self.fc(self.norm(x)).tanh() * scale


class Net(nn.Module):

    def __init__(self, reentrant: bool = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x, scale=.5)
            else:
                x = checkpoint(block, x, .5, use_reentrant=self.reentrant)
        return x


def net(**kwargs) -> Net:
    torch.manual_seed(0)
    return Net(**kwargs)


def hooks(model: nn.Module) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_hooks_with_kwargs)
        for part in model.modules())


def gradients(model: Net, x: Tensor) -> Dict[str, Tensor]:
    """Of a loss that reads recorded outputs and the model's own."""
    with recording(model, r'blocks\.\d\.fc') as seen:
        out = model(x)
    loss = out.square().sum() + sum(
        call.output.abs().sum() for calls in seen.values() for call in calls)
    loss.backward()
    assert [len(calls) for calls in seen.values()] == [1, 1, 1]
    return {name: p.grad for name, p in model.named_parameters()}


def test_outputs_and_inputs_by_name() -> None:
    model, x = net(), torch.randn(2, 4)
    with recording(model, r'blocks\.[02]|blocks\.0\.fc', inputs=True) as seen:
        out = model(x)
        model(out)
    assert list(seen) == ['blocks.0', 'blocks.0.fc', 'blocks.2']
    first, second = seen['blocks.0']
    assert first.args[0] is x and first.kwargs == dict(scale=.5)
    assert second.args[0] is out
    assert seen['blocks.2'][0].output is out
    with recording(model, r'blocks\.0') as seen:
        model(x)
    call, = seen['blocks.0']
    assert call.args == () and call.kwargs == {}


def test_hooks_are_gone_after_errors() -> None:
    model = net()
    with pytest.raises(RuntimeError):
        with recording(model, '.*norm'):
            model(torch.randn(2, 5))
    assert not hooks(model)
    with pytest.raises(ValueError, match='matches no submodule of Net; names'
                       r" look like \['blocks\.0\.norm', "):
        with recording(model, 'nothing'):
            pass
    with pytest.raises(ValueError, match='no regular expression'):
        with recording(model, '('):
            pass


def test_nested() -> None:
    model, x = net(), torch.randn(2, 4)
    with recording(model, '.*fc') as outer:
        model(x)
        with recording(model, '.*fc') as inner:
            model(x)
        model(x)
    assert {len(calls) for calls in outer.values()} == {3}
    assert {len(calls) for calls in inner.values()} == {1}
    assert not hooks(model)


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpoints_record_once(reentrant: bool, inside: bool) -> None:
    model = net(reentrant=reentrant)
    x = torch.randn(2, 4, requires_grad=True)
    with recording(model, '.*norm') as seen:
        out = model(x)
        if inside:
            out.sum().backward()
    if not inside:
        out.sum().backward()
    assert [len(calls) for calls in seen.values()] == [1, 1, 1]
    assert not hooks(model)


def test_gradients_through_checkpoints() -> None:
    x = torch.randn(2, 4)
    expected = gradients(net(), x)
    actual = gradients(net(reentrant=False), x)
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad)


def test_other_threads_are_not_recorded() -> None:
    model = net()

    def serve() -> None:
        for _ in range(50):
            with recording(model, '.*fc') as seen:
                model(torch.zeros(2, 4))
            served.append(seen)

    served: list = []
    with recording(model, '.*fc') as mine:
        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {len(calls) for calls in mine.values()} == {0}
    assert len(served) == 200
    assert all(len(calls) == 1 for seen in served for calls in seen.values())
    assert not hooks(model)


@pytest.mark.parametrize('copy', [
    deepcopy, ExponentialMovingAverage, lambda m: pickle.loads(pickle.dumps(m))
])
def test_copies_record_nothing(copy) -> None:
    model, x = net(), torch.randn(2, 4)
    with recording(model, '.*fc') as seen:
        twin = copy(model)
        torch.testing.assert_close(twin(x), net()(x))
        assert {len(calls) for calls in seen.values()} == {0}
    with recording(twin, r'(module\.)?blocks.*fc') as seen:
        twin(x)
    assert {len(calls) for calls in seen.values()} == {1}


def test_wrapped_models(tmp_path) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        model, x = net(), torch.randn(2, 4)
        wrapped = MMDistributedDataParallel(model)
        with recording(wrapped, r'blocks\.1') as seen:
            wrapped(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert [len(calls) for calls in seen.values()] == [1]
    assert seen['blocks.1'][0].output.requires_grad


def test_compiled_inside() -> None:
    """The record is right where the whole step is compiled."""

    def step(x: Tensor) -> Tensor:
        with recording(model, r'blocks\.1') as seen:
            model(x)
        return seen['blocks.1'][0].output

    model, x = net(), torch.randn(2, 4)
    compiled = torch.compile(step, backend='eager')
    for _ in range(2):
        torch.testing.assert_close(compiled(x), step(x))

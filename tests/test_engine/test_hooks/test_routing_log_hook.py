# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How experts are used is logged; a collapse is told once, health is not."""

import json
import math
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from _routing import TASKS, bound, run, tokens, trunk
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from vim_mm.engine.hooks import RoutingLogHook
from vim_mm.models.moe import Experts
from vim_mm.models.moe.collapse import complaints, layer_state, similarity
from vim_mm.models.tasks import select_task


class Model(BaseModel):
    """An ordinary model of one or several tasks over the trunk."""

    def __init__(self, tasks: List[str], reads: bool, **kwargs) -> None:
        super().__init__()
        self.backbone = trunk(tasks, **kwargs)
        self.fails = False
        if reads:
            self.routing = bound(self.backbone, tasks, weight=.1)

    def forward(self, inputs: Tensor, data_samples: Any = None,
                mode: str = 'loss', task: List[str] = None) -> Any:
        if hasattr(self, 'routing'):
            losses = run(self.backbone, self.routing, task[0], inputs)
        else:
            losses = {}
            if task is not None:
                select_task(self, task[0])
        if self.fails:
            raise RuntimeError('no more memory')
        return dict(losses, loss=self.backbone(inputs).square().mean())


class Steps:
    """Tokens of a task a step."""

    def __init__(self, tasks: List[str], num: int = 400) -> None:
        self.tasks = tasks
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict:
        sample = dict(inputs=tokens(index, 64))
        if self.tasks:
            sample['task'] = self.tasks[index % len(self.tasks)]
        return sample


def collate(samples: List[dict]) -> dict:
    sample, = samples
    if 'task' in sample:
        sample['task'] = [sample['task']]
    return sample


def runner(folder: Path, model: Model, iters: int = 12, tasks: Any = TASKS,
           lr: float = 1e-4, **hook: Any) -> Runner:
    hook = dict(
        dict(type='vim_mm.RoutingLogHook', interval=4, start=8), **hook)
    return Runner(
        model,
        str(folder),
        train_dataloader=dict(
            dataset=Steps(tasks),
            batch_size=1,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=collate),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=4)),
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[hook],
        log_processor=dict(by_epoch=False),
        default_scope='vim_mm',
        randomness=dict(seed=0),
        experiment_name=folder.name)


def scalars(folder: Path) -> Dict[int, Dict[str, float]]:
    path, = folder.rglob('vis_data/scalars.json')
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        record['step']: {
            key: value
            for key, value in record.items() if key.startswith('routing/')
        }
        for record in records if 'routing/busiest' in record
    }


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    told: List[str] = []
    monkeypatch.setattr(MMLogger, 'warning',
                        lambda self, text, *_, **__: told.append(str(text)))
    return told


def of_routing(warnings: List[str]) -> List[str]:
    words = ('experts', 'Experts', 'router')
    return [text for text in warnings if any(w in text for w in words)]


def one_sided(model: Model) -> Model:
    """All routers send every token to the first experts."""
    for layer in model.backbone.layers:
        for router in layer.routers.values():
            router.register_forward_hook(
                lambda _, args, p: p * 0 + torch.linspace(
                    1, .1, p.size(1)).softmax(0))
    return model


# ----------------------------------------------------------------- numbers


@pytest.mark.parametrize('reads', [False, True])
def test_scalars_of_layers_and_their_means(tmp_path: Path, reads: bool,
                                           warnings: List[str]) -> None:
    model = Model(TASKS, reads, std=1.)
    run_ = runner(tmp_path, model, 14)
    run_.train()
    found = scalars(tmp_path)
    assert list(found) == [4, 8, 12, 14]
    hook = next(h for h in run_.hooks if isinstance(h, RoutingLogHook))
    assert hook.is_own != reads
    if reads:
        assert hook.statistics is model.routing
    last = found[14]
    for name in ('information', 'chosen', 'busiest', 'dead', 'spread',
                 'similarity'):
        values = [
            last[f'routing/{layer}/{name}'] for layer in ('first', 'blocks.0')
        ]
        assert last[f'routing/{name}'] == pytest.approx(sum(values) / 2)
    state = hook.states()['first']
    assert last['routing/first/spread'] == pytest.approx(state.spread)
    assert 0 < state.information < math.log(3)
    assert not of_routing(warnings)
    assert not [p for m in model.modules() for p in m._forward_hooks]


def test_both_kinds_of_statistics_say_the_same(tmp_path: Path) -> None:
    rows = []
    for reads in (False, True):
        folder = tmp_path / str(reads)
        model = Model(TASKS, reads, std=1.)
        run_ = runner(folder, model, 9, lr=1e-12)
        run_.train()
        hook = next(h for h in run_.hooks if isinstance(h, RoutingLogHook))
        rows.append(hook.statistics.usage()['blocks.0'])
    torch.testing.assert_close(*rows)


def test_means_alone(tmp_path: Path) -> None:
    runner(tmp_path, Model(None, False), 4, None, per_layer=False).train()
    assert set(scalars(tmp_path)[4]) == {
        f'routing/{name}'
        for name in ('busiest', 'dead', 'spread', 'similarity')
    }


def test_numbers_of_planted_usage() -> None:
    model = trunk(['a', 'b'], num_experts=4)
    routing = bound(model, ['a', 'b'])
    rows = routing.rows('first')
    rows['a'].usage.copy_(torch.tensor([1., 1., 0., 0.]))
    rows['a'].mean.copy_(torch.tensor([.5, .5, 0., 0.]))
    rows['a'].count.fill_(1)
    state = layer_state(routing, 'first', model.first)
    assert state.information is None
    assert (state.dead, state.busiest) == (2, .5)
    assert state.spread == pytest.approx(2) and state.has_collapsed(1.25)
    rows['b'].usage.copy_(torch.tensor([0., 0., 1., 1.]))
    rows['b'].mean.copy_(torch.tensor([0., 0., .5, .5]))
    rows['b'].count.fill_(1)
    state = layer_state(routing, 'first', model.first)
    assert state.information == state.chosen == pytest.approx(math.log(2))
    assert (state.dead, state.busiest) == (0, .25)
    assert state.spread == pytest.approx(4) and not state.has_collapsed(1.25)
    assert layer_state(routing, 'blocks.0', model.blocks[0]) is None


@pytest.mark.parametrize(('experts', 'k'), [(4, 4), (1, 1), (2, 2)])
def test_layers_that_cannot_collapse(experts: int, k: int) -> None:
    model = trunk(['a'], num_experts=experts, k=k)
    routing = bound(model, ['a'])
    run(model, routing, 'a', tokens(0))
    states = {'first': layer_state(routing, 'first', model.first)}
    assert complaints(states) == []


def test_similarity_is_the_cosine_of_weights() -> None:
    experts = Experts(8, 4, [2, 1])
    experts.add(2, like=[0, 2])
    with torch.no_grad():
        for param in experts.parameters():
            param.normal_()
        for param in experts.groups[2].parameters():
            param.mul_(3.)
    flat = torch.cat([
        torch.cat([p.flatten(1) for p in group.parameters()], 1)
        for group in experts.groups
    ])
    unit = nn.functional.normalize(flat)
    expected = torch.stack(
        [torch.cat([row[:i], row[i + 1:]])
         for i, row in enumerate(unit @ unit.t())])
    torch.testing.assert_close(similarity(experts), expected)


# ---------------------------------------------------------------- collapse


@pytest.mark.parametrize('reads', [False, True])
def test_collapsed_routing_is_told_once(tmp_path: Path, reads: bool,
                                        warnings: List[str]) -> None:
    model = one_sided(Model(TASKS, reads))
    runner(tmp_path, model, 20).train()
    sentence, = of_routing(warnings)
    assert sentence.startswith(
        'Routing has collapsed in 2 of 2 layers of experts '
        "(in 'first' as few as 2.0 of 6 share the work, and each token runs "
        '2); give the loss')
    found = scalars(tmp_path)[20]
    assert found['routing/busiest'] == .5
    assert found['routing/dead'] == 4
    if reads:
        assert found['routing/information'] == pytest.approx(0, abs=1e-6)
        assert found['routing/chosen'] == pytest.approx(0, abs=1e-6)


def test_copied_experts_are_told_once(tmp_path: Path,
                                      warnings: List[str]) -> None:
    model = Model(TASKS, True, std=1.)
    with torch.no_grad():
        for param in model.backbone.first.experts.parameters():
            param.copy_(param[:1] + 1e-3 * torch.randn_like(param))
    runner(tmp_path, model, 20).train()
    sentence, = of_routing(warnings)
    assert sentence.startswith(
        "Experts are copies of each other in 1 of 2 layers (in 'first' 6 of "
        '6); perturb')
    assert scalars(tmp_path)[20]['routing/first/similarity'] > .999


@pytest.mark.parametrize('hook', [dict(start=100), dict(spread=.9)])
def test_limits_of_warnings(tmp_path: Path, hook: dict,
                            warnings: List[str]) -> None:
    runner(tmp_path, one_sided(Model(TASKS, True)), 12, **hook).train()
    assert not of_routing(warnings)


def test_a_wanted_concentration_is_no_collapse(tmp_path: Path,
                                               warnings: List[str]) -> None:
    model = one_sided(Model(TASKS, True))
    model.routing.concentration = .1
    runner(tmp_path, model, 12).train()
    assert not of_routing(warnings)


# -------------------------------------------------------------------- runs


def test_its_own_statistics_go_on_after_a_restart(tmp_path: Path) -> None:

    def statistics(folder: str, iters: int, **resume) -> Dict[str, Tensor]:
        run_ = runner(tmp_path / folder, Model(TASKS, False), iters)
        for key, value in resume.items():
            setattr(run_, key, value)
        run_.train()
        hook = next(h for h in run_.hooks if isinstance(h, RoutingLogHook))
        return hook.statistics.state_dict()

    whole = statistics('whole', 8)
    part = statistics(
        'part', 8, _load_from=str(tmp_path / 'whole/iter_4.pth'), _resume=True)
    assert part.keys() == whole.keys()
    for key in whole:
        assert float(whole[key].sum()) > 0
        if key.endswith('count'):
            assert torch.equal(part[key], whole[key])


def test_a_failed_step_leaves_no_second_record(tmp_path: Path) -> None:
    model = Model(TASKS, False)
    run_ = runner(tmp_path, model, 4)
    model.fails = True
    with pytest.raises(RuntimeError, match='no more memory'):
        run_.train()
    model.fails = False
    run_.train()
    hook = next(h for h in run_.hooks if isinstance(h, RoutingLogHook))
    rows = hook.statistics.rows('first')
    assert sum(float(row.count) for row in rows.values()) == 4
    assert not [p for m in model.modules() for p in m._forward_hooks]


def test_models_without_experts(tmp_path: Path) -> None:
    model = Model(TASKS, False)
    model.backbone = nn.Linear(8, 8)
    with pytest.raises(ValueError, match='Linear has no layer of experts'):
        runner(tmp_path, model).train()

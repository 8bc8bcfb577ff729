# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes train several tasks, which change every step."""

from itertools import product
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import pytest
import torch
import torch.distributed as dist
from _processes import WORLD, together
from _routing import bound, run, tokens, trunk
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from _tiny import PLACES, SIZE, TWO_TASKS, same, two_tasks
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS

STEPS, SHARE = 20, 2
NAMES = list(TWO_TASKS)
FUSIONS = ['EnsMoE', 'LinearMoE', 'RoutedMoE']
#: by how many tasks a process is ahead of the one before it
AHEAD = [0, 1]
CASES = list(product(PLACES, FUSIONS, AHEAD))


def build(folder: Path, place: str, fusion: str, **kwargs) -> nn.Module:
    """The same model everywhere, in double precision."""
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    cfg = two_tasks(folder, place, fusion, **kwargs)
    return MODELS.build(cfg).double().train()


def loss_of(model: nn.Module, step: int, rank: int) -> Tensor:
    """The loss of what a process sees in a step."""
    generator = torch.Generator().manual_seed(WORLD * step + rank)
    inputs = torch.randn(
        SHARE, 3, SIZE, SIZE, generator=generator, dtype=torch.double)
    labels = torch.randint(0, 2, (SHARE, ), generator=generator)
    samples = [DataSample().set_gt_label(label) for label in labels]
    return model(inputs, samples, mode='loss')['loss']


def task_of(step: int, rank: int, ahead: int) -> str:
    return NAMES[(step + ahead * rank) % 2]


def train(model: nn.Module, backward: Callable[[int], None]) -> Dict:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(step)
        optimizer.step()
    return model.state_dict()


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=WORLD)
    for place, fusion, ahead in CASES:
        model = build(Path(folder), place, fusion, learn=NAMES)
        wrapped = DistributedDataParallel(model)

        def backward(step: int) -> None:
            select_task(wrapped, task_of(step, rank, ahead))
            loss_of(wrapped, step, rank).backward()

        torch.save(
            train(model, backward),
            f'{folder}/{place}_{fusion}_{ahead}_{rank}.pth')
    torch.save(routing_seen_by([rank]), f'{folder}/routing_{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


#: what each process runs in a step: a task, and how many tokens
SHARED = [(('a', 9), ('a', 9)), (('a', 9), ('a', 4)), (('b', 5), ('c', 7)),
          (('a', 3), ('b', 8)), (('c', 1), ('c', 6))]


def routing_seen_by(ranks: Sequence[int]) -> Dict[str, Tensor]:
    """Running means of routers after what some of the processes run."""
    model = trunk()
    routing = bound(model)
    for step, shares in enumerate(SHARED):
        batches: Dict[str, List[Tensor]] = {}
        for rank in ranks:
            task, num = shares[rank]
            batches.setdefault(task, []).append(
                tokens(WORLD * step + rank, num))
        for task, batch in batches.items():
            run(model, routing, task, torch.cat(batch))
    return routing.state_dict()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have learned in all cases."""
    path = tmp_path_factory.mktemp('tasks')
    two_tasks(path)  # the trunk and the zoo are there
    together(worker, str(path))
    return path


@pytest.mark.slow
def test_processes_share_their_running_means(folder: Path) -> None:
    """Those of one that sees all tokens, whichever tasks they run."""
    first, second = (
        torch.load(folder / f'routing_{rank}.pth') for rank in range(WORLD))
    assert same(first, second)
    torch.testing.assert_close(routing_seen_by(range(WORLD)), first)


def learned(folder: Path, *case) -> List[Dict[str, Tensor]]:
    names = ['_'.join(map(str, [*case, rank])) for rank in range(WORLD)]
    return [torch.load(folder / f'{name}.pth') for name in names]


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=str)
def test_tasks_that_change_every_step_stay_equal(case: tuple,
                                                 folder: Path) -> None:
    place, fusion, ahead = case
    first, second = learned(folder, *case)
    assert same(first, second)

    model = build(folder, place, fusion, learn=NAMES)

    def backward(step: int) -> None:
        for rank in range(WORLD):
            select_task(model, task_of(step, rank, ahead))
            (loss_of(model, step, rank) / WORLD).backward()

    alone = train(model, backward)
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(
            first[key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=str)
def test_the_task_not_selected_at_wrapping_is_exchanged(
        case: tuple, folder: Path) -> None:
    """Its gates, modules and head learned, from both processes' pictures."""
    place, fusion, _ = case
    before = build(folder, place, fusion, learn=NAMES).state_dict()
    first, second = learned(folder, *case)
    fusing = dict(trunk='backbone', neck='neck')[place]
    of_y = [
        key for key in before
        if key.startswith((f'{fusing}.fusion.logits.y', 'head.heads.y',
                           'backbone.bank.members.c'))
    ]
    assert len(of_y) > 5
    for key in of_y:
        assert not torch.equal(first[key], before[key])
        assert torch.equal(first[key], second[key])

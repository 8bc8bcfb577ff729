# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What can be done to a trained mixture of experts.

Each function takes any model that has layers of experts, and they compose:
fewer active experts, new tasks and experts, pruning, and, in
:mod:`.freezing`, training of some parts alone. They replace parameters, so
call them before an optimizer, a data-parallel wrapper and averaged copies are
built.
"""

import re
from dataclasses import replace
from itertools import chain
from typing import (Any, Dict, Iterable, List, Mapping, Optional, Sequence,
                    Union)

from torch import Tensor, nn

from vim_mm.utils.arguments import check_arguments, check_number
from ..task_names import check_tasks
from .growing import missing
from .moe_layer import MoELayer, moe_layers

#: by layer and task, how often each expert that the task knows has run
Usage = Mapping[str, Mapping[str, Tensor]]
#: experts per token, of all layers or by patterns of layers' names
K = Union[int, Mapping[str, int]]


def experts_of(model: nn.Module) -> Dict[str, MoELayer]:
    """The layers of experts of a model that must have some.

    Raises:
        ValueError: If there is none.
    """
    layers = moe_layers(model)
    if not layers:
        raise ValueError(f'{type(model).__name__} has no layer of experts; '
                         'give a mixture-of-experts trunk, such as '
                         'vim_mm.MoEDaViT.')
    return layers


def tasks_of(model: nn.Module) -> List[str]:
    """The tasks that have a router in some layer."""
    return list(
        dict.fromkeys(
            task for layer in experts_of(model).values()
            for task in layer.tasks))


def set_k(model: nn.Module, k: K) -> None:
    """Run ``k`` experts per token from now on.

    Args:
        model (nn.Module): The model.
        k (int | Mapping[str, int]): For every layer; or by patterns, of which
            the first that matches the full name of a layer counts. Layers
            that none matches keep theirs.

    Raises:
        ValueError: If a layer has fewer experts, or a pattern is of no use;
            then nothing has changed.
    """
    layers = experts_of(model)
    chosen = _k_by_layer(layers, k) if isinstance(k, Mapping) \
        else dict.fromkeys(layers, k)
    for name, each in chosen.items():
        layers[name].check_k(each)
    for name, each in chosen.items():
        layers[name].set_k(each)


def _k_by_layer(layers: Mapping[str, MoELayer],
                patterns: Mapping[str, int]) -> Dict[str, int]:
    chosen: Dict[str, int] = {}
    for pattern, k in patterns.items():
        try:
            fits = re.compile(pattern).fullmatch
        except (re.error, TypeError) as error:
            raise ValueError(f'{pattern!r} in `k` is no regular expression: '
                             f'{error}.') from error
        found = [name for name in layers if fits(name)]
        if not set(found) - chosen.keys():
            raise ValueError(
                f'{pattern!r} in `k` matches no layer of experts that no '
                f'pattern before it does; they are {list(layers)}.')
        chosen.update((name, k) for name in found if name not in chosen)
    return chosen


def add_task(model: nn.Module,
             task: str,
             num_experts: int = 0,
             like: Optional[str] = None,
             usage: Optional[Usage] = None) -> None:
    """Give every layer a router for one more task, which learns.

    The outputs of the other tasks stay the same, bit for bit, and stay so in
    training if what they use is frozen, see :func:`protect`.

    Args:
        model (nn.Module): The model.
        task (str): Name of the new task.
        num_experts (int): Number of new experts in every layer, which only
            this task and later ones know. Defaults to 0.
        like (str, optional): The task that it starts as, whose outputs it
            gives, bit for bit, until it is trained; new experts then start as
            copies. Everything new starts afresh when None.
        usage (Usage, optional): How often experts have run; copies are made
            of those that ``like`` uses most, or of the first ones when None.

    Raises:
        ValueError: If there is such a task, no task ``like``, or the number
            is negative.
    """
    if not isinstance(num_experts, int) or num_experts < 0:
        raise ValueError(f'{num_experts!r} new experts are asked for; give 0 '
                         'or more.')
    for name, layer in experts_of(model).items():
        layer.add_task(task, num_experts, like, (usage or {}).get(name))


def grow(model: nn.Module,
         task: str,
         usage: Optional[Usage] = None,
         **experts: Any) -> None:
    """:func:`add_task`, or nothing if no part tells tasks apart.

    Args:
        model (nn.Module): A backbone; one without experts takes no
            ``**experts``.
        task (str): Name of the new task.
        usage, **experts: See :func:`add_task`.

    Raises:
        ValueError: See :func:`add_task`; or if it takes no such argument.
    """
    check_arguments(add_task, experts, ('model', 'task', 'usage'))
    if experts or moe_layers(model):
        add_task(model, task, usage=usage, **experts)


def prefer_used(model: nn.Module, usage: Usage, state: Mapping[str, Tensor],
                prefix: str) -> None:
    """Let copies be those of the most used experts of a checkpoint.

    For new tasks that it lacks, before it is loaded.

    Args:
        model (nn.Module): The model.
        usage (Usage): How often the checkpoint's experts have run.
        state (Mapping[str, Tensor]): Its tensors.
        prefix (str): What names of the model's begin with there.
    """
    for name, layer in moe_layers(model).items():
        for task in missing(layer.starts, state, f'{prefix}{name}.'):
            begin = layer.starts[task]
            originals = layer.routers[begin.like].originals(
                len(begin.originals),
                usage.get(name, {}).get(begin.like))
            layer.starts[task] = replace(begin, originals=originals)


# ---------------------------------------------------------------- pruning


def extract(model: nn.Module,
            tasks: Sequence[str],
            usage: Optional[Usage] = None,
            threshold: Optional[float] = None) -> Usage:
    """Reduce a trunk to what some of its tasks need, in place.

    Routers of other tasks go, and experts that only those know. With a
    threshold an expert stays if one of the tasks uses it in more than
    ``threshold / k`` percent of cases, or if it is among the ``k`` most used.
    Outputs stay the same, bit for bit, for tokens that choose none of the
    dropped experts.

    Args:
        model (nn.Module): The trunk.
        tasks (Sequence[str]): The tasks to keep.
        usage (Usage, optional): How often each expert has run, in any unit.
        threshold (float, optional): In percent, the paper's is 3; all experts
            stay when None.

    Returns:
        Usage: Of the experts that are left.

    Raises:
        ValueError: If a task is not known, or usage is needed and missing;
            then nothing has changed.
    """
    layers = experts_of(model)
    if not tasks:
        raise ValueError('No task is to be kept; name one of '
                         f'{tasks_of(model)}.')
    if threshold is not None:
        check_number(threshold, 'threshold')
    kept = {}
    for name, layer in layers.items():
        check_tasks(tasks, layer.tasks, f'`{name}`')
        # what no other task than the dropped ones knows goes, too
        known = [layer.routers[task].known for task in tasks]
        kept[name] = sorted(set(chain(*known)))
        if threshold is not None:
            found = usage_of(usage, name, layer, tasks)
            kept[name] = kept_experts(found, threshold, layer.k)
    left = {}
    for name, layer in layers.items():
        layer.keep_tasks(tasks)
        layer.keep(kept[name])
        left[name] = {
            task: counts[[i for i in kept[name] if i < len(counts)]]
            for task, counts in ((usage or {}).get(name) or {}).items()
            if task in tasks
        }
    return left


def kept_experts(usage: Iterable[Tensor], threshold: float,
                 k: int) -> List[int]:
    """Which experts of a layer pruning leaves.

    Args:
        usage (Iterable[Tensor]): Of each task to keep, how often each expert
            that it knows has run.
        threshold (float): See :func:`extract`.
        k (int): Experts per token.
    """
    kept = set()
    for counts in usage:
        percent = 100 * counts / counts.sum()
        kept |= set((percent > threshold / k).nonzero().flatten().tolist())
        kept |= set(counts.topk(k).indices.tolist())
    return sorted(kept)


def usage_of(usage: Optional[Usage], name: str, layer: MoELayer,
             tasks: Sequence[str]) -> List[Tensor]:
    """How often each expert of a layer has run for each of some tasks.

    Raises:
        ValueError: If that is not known, or belongs to another structure.
    """
    found = []
    for task in tasks:
        counts = ((usage or {}).get(name) or {}).get(task)
        if counts is None or not counts.sum() > 0:
            raise ValueError(
                f"How often task '{task}' uses the experts of `{name}` is not "
                'known; measure it (`vim-mm moe extract` does), or give a '
                'file that says so.')
        experts = layer.routers[task].num_experts
        if len(counts) != experts:
            raise ValueError(
                f"The usage of task '{task}' in `{name}` is that of "
                f'{len(counts)} experts, but it has {experts}; measure it '
                'anew.')
        found.append(counts.double().cpu())
    return found

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which parts of a mixture of experts learn.

That is told by flags of parameters. Experts that learn beside frozen ones
become groups, hence parameters, of their own: masked gradients would not stop
weight decay and momentum.
"""

from typing import List, Mapping, Optional, Sequence, Union

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vim_mm.utils.arguments import check_is_config, check_is_list
from ..task_names import check_tasks
from ..tasks import let_learn
from .moe_layer import MoELayer, moe_layers
from .surgery import Usage, experts_of, usage_of

#: what may learn, or not; ``'shared'`` is all that is no router or expert
PARTS = ('routers', 'experts', 'shared')
SELECTS = ('new', 'most', 'least')


def freeze(model: nn.Module,
           train: Union[str, Sequence[str]],
           experts: Optional[Mapping] = None,
           usage: Optional[Usage] = None) -> None:
    """Let some parts of a trunk learn, and no other.

    What is to learn is told by flags of parameters; experts that learn beside
    frozen ones become groups of their own. Norms with running statistics stay
    in eval mode if shared parts are frozen. Heads are none of its business:
    give the backbone alone.

    Args:
        model (nn.Module): The trunk.
        train (str | Sequence[str]): ``'all'`` or some of ``'routers'`` (of
            the tasks that learn), ``'experts'`` and ``'shared'`` (all else).
        experts (Mapping, optional): Which experts learn in every layer:
            ``num`` of them, ``select='new'`` (the last ones), ``'most'`` or
            ``'least'`` used by the running task. All when None.
        usage (Usage, optional): How often each expert has run, for ``'most'``
            and ``'least'``.

    Raises:
        ValueError: If there is no such part or choice, or usage is missing;
            then nothing has changed.
    """
    parts = check_train(train, experts)
    layers = experts_of(model)
    chosen = {
        name: _choose(name, layer, experts, usage)
        for name, layer in layers.items()
    } if experts else {}
    _set_shared(model, 'shared' in parts)
    for name, layer in layers.items():
        layer.routers_learn = 'routers' in parts
        layer.learn_tasks(layer.learning)
        let_learn(layer.experts.parameters(), False)
        if 'experts' in parts:
            _learn_experts(layer, chosen.get(name))


def protect(model: nn.Module, tasks: Sequence[str]) -> None:
    """Freeze everything that some tasks use; what only others use learns.

    Training other tasks then changes no bit of the outputs of these.

    Args:
        model (nn.Module): The trunk, with or without experts.
        tasks (Sequence[str]): The tasks.

    Raises:
        ValueError: If a task is not known; then nothing has changed.
    """
    layers = moe_layers(model)
    for name, layer in layers.items():
        check_tasks(tasks, layer.tasks, f'`{name}`')
    _set_shared(model, not tasks)
    for layer in layers.values():
        layer.routers_learn = True
        layer.learn_tasks([t for t in layer.tasks if t not in tasks])
        used = layer.used_by(tasks)
        for group in layer.experts.groups:
            let_learn(group.parameters(), group not in used)


def check_train(train: Union[str, Sequence[str]],
                experts: Optional[Mapping] = None) -> List[str]:
    """The parts that learn.

    Raises:
        ValueError: If there is no such part or choice of experts.
    """
    parts = [train] if isinstance(train, str) else train
    check_is_list(parts, 'train')
    parts = list(parts)
    if parts == ['all']:
        parts = list(PARTS)
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"`train` names {part!r}; give 'all' or some of "
                             f'{", ".join(PARTS)}.')
    if experts is None:
        return parts
    check_is_config(experts, 'experts')
    num, select = experts.get('num'), experts.get('select', 'new')
    if experts.keys() - {'num', 'select'} or select not in SELECTS:
        raise ValueError(f'`experts` is {dict(experts)}; give '
                         '`dict(num=N, select=…)` with '
                         f'{", ".join(SELECTS)}.')
    if type(num) is not int or num < 1:
        raise ValueError(f'`experts.num` is {num!r}, so no expert would '
                         "learn; give 1 or more, or leave 'experts' out of "
                         '`train`.')
    if 'experts' not in parts:
        raise ValueError(f'`experts` chooses {num} experts to learn, but '
                         f"`train` is {train!r}; add 'experts' to it.")
    return parts


def _choose(name: str, layer: MoELayer, experts: Mapping,
            usage: Optional[Usage]) -> List[int]:
    num, select = experts['num'], experts.get('select', 'new')
    known = layer.router.num_experts
    if num > known:
        raise ValueError(f'`experts.num` is {num}, but `{name}` has {known} '
                         f'experts; give 1 to {known}.')
    if select == 'new':
        return list(range(known - num, known))
    counts, = usage_of(usage, name, layer, [layer.task])
    order = counts.argsort(descending=select == 'most', stable=True)
    return order[:num].tolist()


def _learn_experts(layer: MoELayer, chosen: Optional[List[int]]) -> None:
    if chosen is not None:
        layer.experts.split(chosen)
    start = 0
    for group in layer.experts.groups:
        let_learn(group.parameters(), chosen is None or start in chosen)
        start += len(group)


def _set_shared(model: nn.Module, learns: bool) -> None:
    """Let all but routers and experts learn, or not.

    What the trunk itself keeps frozen, such as its first stages, stays so.
    """
    inside = {
        id(param)
        for layer in moe_layers(model).values()
        for part in (layer.routers, layer.experts)
        for param in part.parameters()
    }
    shared = {
        name: param
        for name, param in model.named_parameters() if id(param) not in inside
    }
    if not hasattr(model, 'statistics_learn'):
        model.register_forward_pre_hook(_hold)
        model.always_frozen = {
            name
            for name, param in shared.items() if not param.requires_grad
        }
    model.statistics_learn = learns
    for name, param in shared.items():
        let_learn([param], learns and name not in model.always_frozen)


def _hold(trunk: nn.Module, _: tuple) -> None:
    """Keep the running statistics of norms, whoever has called ``train()``."""
    if trunk.training and not trunk.statistics_learn:
        for part in trunk.modules():
            if isinstance(part, _NormBase):
                part.eval()

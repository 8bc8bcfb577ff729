# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trunk as its moe file says, adapted as a config says."""

from typing import Mapping, Optional, Sequence, Union

from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import nn

from vim_mm.registry import MODELS
from vim_mm.utils.meta import check_shapes, most_parts, shapes, without_memory
from ..tasks import learn_tasks, select_task
from . import surgery
from .adaptation import load_adaptation
from .freezing import check_train, freeze
from .moe_file import MoEFile, MoEFileError, read_moe


@MODELS.register_module()
def load_moe(checkpoint: str,
             task: Optional[str] = None,
             like: Optional[str] = None,
             train: Union[str, Sequence[str]] = 'all',
             experts: Optional[Mapping] = None,
             k: Optional[surgery.K] = None,
             threshold: Optional[float] = None,
             zoo: Optional[str] = None,
             module: Optional[str] = None) -> nn.Module:
    """Build a trunk from a moe file, with its structure and weights.

    It is an ordinary backbone. The arguments adapt it to a task and compose:
    fewer active experts (``k``), fewer stored ones (``threshold``), fewer
    that learn (``train``, ``experts``).

    Args:
        checkpoint (str): The moe file.
        task (str, optional): The task to run and learn. A name that the file
            does not know gets routers of its own. All tasks learn, and the
            first one runs, when None.
        like (str, optional): The task of the file that a new one starts as.
        train (str | Sequence[str]): What learns, see :func:`freeze`. Defaults
            to ``'all'``.
        experts (Mapping, optional): Which experts learn, see :func:`freeze`.
            With ``select='new'`` a new task gets ``num`` new ones in every
            layer, of which it alone knows.
        k (int | Mapping[str, int], optional): Experts per token, see
            :func:`set_k`; as in the file when None.
        threshold (float, optional): Keep only what ``task``, or ``like``,
            uses, see :func:`extract`. Defaults to None, everything.
        zoo (str, optional): Directory of a zoo.
        module (str, optional): Name of an adaptation of this trunk in the
            zoo; the trunk then is what it says, before all else.

    Returns:
        nn.Module: The trunk.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be used, or an argument does not fit it.
        ZooError: If the module is unknown, damaged or of another trunk.
    """
    if (zoo is None) != (module is None):
        raise ValueError(f'`zoo` is {zoo!r} and `module` {module!r}; give '
                         'both, to load an adaptation, or neither.')
    file = read_moe(checkpoint)
    trunk, usage = build_from(file), file.usage
    if module is not None:
        usage = {}  # of the experts as they were
        own = load_adaptation(trunk, zoo, module)
        task = own if task is None else task
    adapt(trunk, usage, task, like, train, experts, k, threshold)
    return trunk


def build_from(file: MoEFile) -> nn.Module:
    """The trunk of a moe file.

    Raises:
        MoEFileError: If its tensors do not fit its config.
    """
    try:
        with without_memory(most_parts(len(file.shapes))):
            check_shapes(shapes(_structured(file).state_dict()), file.shapes)
        trunk = _structured(file)
        trunk.load_state_dict(file.tensors())
    except MoEFileError:
        raise
    except Exception as error:  # a stranger's config may lead to any
        said = ' '.join(str(error).split()).rstrip('.')
        raise MoEFileError(f'{file.path} cannot be used: {said}; get or write '
                           'it again.') from error
    # an ordinary model's `init_weights` passes over it
    trunk.is_init = True
    return trunk


def _structured(file: MoEFile) -> nn.Module:
    """The trunk with its experts and routers, its weights fresh."""
    config = dict(file.backbone)
    with DefaultScope.overwrite_default_scope(config.pop('_scope_', None)):
        trunk = MODELS.build(config)
    layers = surgery.experts_of(trunk)
    if layers.keys() != file.layers.keys():
        raise ValueError('it describes other layers of experts than its '
                         f'{type(trunk).__name__} has')
    for name, layer in layers.items():
        info = file.layers[name]
        layer.gate_scale = info.gate_scale
        layer.restructure(info.structure, info.tasks)
        layer.set_k(info.k)
    return trunk


def adapt(trunk: nn.Module,
          usage: surgery.Usage,
          task: Optional[str] = None,
          like: Optional[str] = None,
          train: Union[str, Sequence[str]] = 'all',
          experts: Optional[Mapping] = None,
          k: Optional[surgery.K] = None,
          threshold: Optional[float] = None) -> None:
    """Adapt a trunk to a task, in place; see :func:`load_moe`.

    Args:
        trunk (nn.Module): The trunk.
        usage (Usage): How often its experts ran.
        task, like, train, experts, k, threshold: See :func:`load_moe`.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_train(train, experts)
    known = surgery.tasks_of(trunk)
    is_new = task is not None and task not in known
    adds = bool(experts) and experts.get('select', 'new') == 'new'
    if adds and not is_new:
        raise ValueError(
            f"The router of task '{task or known[0]}' would not know new "
            'experts; give a `task` name of its own, and `like` to start as '
            'this one.')
    if like is not None and not is_new:
        raise ValueError(f"`like` is '{like}', but task '{task or known[0]}' "
                         'has a router already; give the new task another '
                         'name.')
    source = like if is_new else task
    if k is not None:
        surgery.set_k(trunk, k)
    if threshold is not None:
        if source is None:
            raise ValueError(
                f'`threshold` is {threshold}, but no task says which experts '
                f'are used; set `task` (or `like`) to one of {known}.')
        usage = surgery.extract(trunk, [source], usage, threshold)
    if is_new:
        start = 'afresh' if like is None else f"as those of '{like}'"
        print_log(
            f"Task '{task}' is new to a trunk that knows {known}: its routers "
            f'start {start}.',
            logger='current')
        surgery.add_task(trunk, task, experts['num'] if adds else 0, like,
                         usage)
        usage = _inherited(usage, like, task)
    if task is not None:
        select_task(trunk, task)
        learn_tasks(trunk, [task])
    if train != 'all' or experts:
        freeze(trunk, train, experts, usage)


def _inherited(usage: surgery.Usage, like: Optional[str],
               task: str) -> surgery.Usage:
    """Usage in which a new task runs what the task it starts as runs."""
    return {
        layer: dict(rows, **{task: rows[like]}) if like in rows else rows
        for layer, rows in usage.items()
    }

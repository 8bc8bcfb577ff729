# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Contents of the checkpoint of ViM's release, in our names."""

import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor

from vim_mm.zoo.card import is_name
from .trunks import ConversionError

StateDict = Dict[str, Tensor]

#: Submodules of a block in our trunk, to the release's names of their parts.
BRANCHES = dict(attn='vim_att', ffn='vim_mlp')
PARAMS = {
    f'adapter_{part}.{leaf}': f'{part}.{leaf}'
    for part in ('down', 'conv', 'up')
    for leaf in ('weight', 'bias')
}
SEG_PARTS = {
    'pre_fpn.': 'neck.resizes.',
    'fpn_neck.': 'neck.inner_neck.',
    'fpn_head.': 'decode_head.',
}


@dataclass(frozen=True)
class ReleasedTask:
    """One downstream task of the release.

    Attributes:
        name (str): Its name, e.g. ``'seg-voc'``.
        logits (dict[str, Tensor]): Slot to one logit per module, (N, ).
        head (dict[str, Tensor]): Neck and head in the names of an mm* model.
        classes (list[str], optional): Names of its classes.
    """

    name: str
    logits: StateDict
    head: StateDict
    classes: Optional[List[str]]

    @property
    def kind(self) -> str:
        """'cls' or 'seg'."""
        return self.name[:3]


def read_modules(content: Mapping[str, Any]) -> List[StateDict]:
    """The modules of the release.

    Args:
        content (Mapping): What ``read_release`` gave.

    Returns:
        list[dict[str, Tensor]]: Per module ``'<slot>.<param>'`` to tensor.

    Raises:
        ConversionError: If something is missing, in excess or renamed.
    """
    modules: List[StateDict] = []
    where = "'ViM_weights'"
    for index, layer in enumerate(_items(content['ViM_weights'], where)):
        for branch, name in BRANCHES.items():
            here = f"{where}[{index}]['{name}_weights']"
            states = _items(
                _get(layer, f'{name}_weights', f'{where}[{index}]'), here)
            modules = modules or [{} for _ in states]
            if len(states) != len(modules):
                raise ConversionError(
                    f'{here} holds {len(states)} modules and the first layer '
                    f'{len(modules)}: the file is damaged')
            for module, state in zip(modules, states):
                _compare_keys(state, PARAMS, here)
                for theirs, ours in PARAMS.items():
                    module[f'layers.{index}.{branch}.{ours}'] = state[
                        theirs].detach().float()
    if not modules:
        raise ConversionError(f'{where} hold no module')
    return modules


def read_tasks(content: Mapping[str, Any], num_modules: int,
               only: Optional[Sequence[str]]) -> List[ReleasedTask]:
    """The tasks of the release.

    Args:
        content (Mapping): What ``read_release`` gave.
        num_modules (int): Number of modules N.
        only (Sequence[str], optional): The tasks wanted; all when None.

    Raises:
        ConversionError: If a task is unknown, of another kind than 'cls' and
            'seg', or lacks something.
    """
    meta = content['meta_info']
    algo = _get(meta, 'ViM_agg_algo', "'meta_info'")
    if algo != 'Ens-MoE':
        raise ConversionError(
            f"its modules are aggregated by '{algo}', and only Ens-MoE has a "
            'twin here (vim_mm.EnsMoE)')
    known = _items(_get(meta, 'task_list', "'meta_info'"), "'task_list'")
    names = known if only is None else list(only)
    for name in names:
        if name not in known:
            raise ConversionError(f"it has no task '{name}', it has {known}")
        # a name becomes that of files
        if not is_name(name) or name[:3] not in HEADS:
            raise ConversionError(
                f"its task '{name}' is neither a classification ('cls…') nor "
                "a segmentation ('seg…'): name the tasks to convert with "
                '--tasks (`tasks=…`)')
    return [_read_task(content, name, num_modules) for name in names]


def _read_task(content: Mapping[str, Any], name: str,
               num_modules: int) -> ReleasedTask:
    where = f"'ViM_agg_weights'['{name}']"
    layers = _items(
        _get(content['ViM_agg_weights'], name, "'ViM_agg_weights'"), where)
    logits = {}
    for index, layer in enumerate(layers):
        for branch, theirs in BRANCHES.items():
            here = f"{where}[{index}]['{theirs}_agg']"
            row = _get(layer, f'{theirs}_agg', f'{where}[{index}]')
            _check_tensors({here: row}, here)
            if row.shape != (num_modules, ):
                raise ConversionError(f'{here} has the shape '
                                      f'{tuple(row.shape)} for {num_modules} '
                                      'modules')
            logits[f'layers.{index}.{branch}'] = row.detach().float()
    head = _get(content['head_weights'], name, "'head_weights'")
    head = HEADS[name[:3]](head, content, f"'head_weights'['{name}']")
    return ReleasedTask(name, logits, head, _classes(content, name))


def _cls_head(head: StateDict, content: Mapping[str, Any],
              where: str) -> StateDict:
    """One linear layer on the unprojected class token.

    ``(x @ proj) @ W.T + b`` is ``x @ (W @ proj.T).T + b``.
    """
    _compare_keys(head, ('classifier.weight', 'classifier.bias'), where)
    proj = _get(content['backbone_weights'], 'proj', "'backbone_weights'")
    _check_tensors(dict(proj=proj), "'backbone_weights'")
    weight = head['classifier.weight']
    if weight.shape[-1:] != proj.shape[-1:]:
        raise ConversionError(
            f'{where} has a weight of shape {tuple(weight.shape)} and the '
            f'projection of the trunk {tuple(proj.shape)}')
    return {
        'head.fc.weight': (weight.double() @ proj.double().T).float(),
        'head.fc.bias': head['classifier.bias'].float()
    }


def _seg_head(head: StateDict, content: Mapping[str, Any],
              where: str) -> StateDict:
    _check_tensors(head, where)
    renamed = {}
    for key, value in head.items():
        part = re.match(r'\w+\.', key)
        if part is None or part[0] not in SEG_PARTS:
            raise ConversionError(f"'{key}' of {where} belongs to none of "
                                  f'{", ".join(p[:-1] for p in SEG_PARTS)}')
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        renamed[SEG_PARTS[part[0]] + key[len(part[0]):]] = value
    return renamed


HEADS = dict(cls=_cls_head, seg=_seg_head)


def _classes(content: Mapping[str, Any], task: str) -> Optional[List[str]]:
    """Names by number, from a list or a dictionary of them."""
    names = content['meta_info'].get('label_map')
    if not isinstance(names, Mapping) or names.get(task) is None:
        return None
    where = f"'label_map'['{task}']"
    return [str(name) for name in _items(names[task], where)]


def _items(value: Any, where: str) -> List[Any]:
    """The items of a list, or of a dictionary numbered from zero."""
    try:
        return [value[index] for index in range(len(value))]
    except (KeyError, TypeError):
        raise ConversionError(f'{where} is no list: take the file as it was '
                              'published') from None


def _get(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        found = list(value)[:5] if isinstance(value, Mapping) else value
        raise ConversionError(f"{where} lacks '{key}', it holds {found}: "
                              'take the file as it was published')
    return value[key]


def _compare_keys(state: Mapping[str, Tensor], keys: Sequence[str],
                  where: str) -> None:
    _check_tensors(state, where)
    odd = sorted(set(keys) ^ state.keys())
    if odd:
        what = 'lacks' if odd[0] in keys else 'has, beyond what is known,'
        raise ConversionError(f"{where} {what} '{odd[0]}': take the file as "
                              'it was published')


def _check_tensors(state: Any, where: str) -> None:
    if not isinstance(state, Mapping) or not all(
            isinstance(key, str) and isinstance(value, Tensor)
            for key, value in state.items()):
        raise ConversionError(f'{where} does not consist of named tensors: '
                              'take the file as it was published')


def hidden_dims(module: StateDict, name: str) -> int:
    """The bottleneck width of a module, equal in all of its adapters.

    Raises:
        ConversionError: If it differs.
    """
    widths = {len(v) for k, v in module.items() if 'down.bias' in k}
    if len(widths) > 1:
        raise ConversionError(
            f"module '{name}' has adapters of the widths {sorted(widths)}, "
            'and a module of the zoo has one')
    return widths.pop()


def stack_logits(task: ReleasedTask, slots: Sequence[str]) -> Tensor:
    """The logits in the order of a backbone's slots, (S, N).

    Raises:
        ConversionError: If the slots are others.
    """
    if sorted(task.logits) != sorted(slots):
        odd = sorted(task.logits.keys() ^ set(slots))[0]
        raise ConversionError(
            f"task '{task.name}' and the trunk differ in their blocks, such "
            f"as '{odd}'")
    return torch.stack([task.logits[slot] for slot in slots])

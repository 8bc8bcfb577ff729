# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Where published files keep their tensors, and under which prefix."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = [
    'common_prefix', 'plain_name', 'strip_prefix', 'strip_shells', 'unwrap'
]

#: What training code wraps a state dict in. Averaged weights come first, as
#: in timm; of self-distillation the teacher is what is published.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'teacher',
            'module', 'model_state', 'params')
#: How names of what is no model begin: of an optimizer, a scaler, a schedule.
STATES = ('opt', 'scaler', 'amp', 'lr_', 'sched')
#: How many wrappers may be around a model.
DEPTH = 8
#: Wrappers of a whole model, which say nothing of what is inside.
SHELLS = ('module.', '_orig_mod.', 'model.')
#: What wrappers of parts (FSDP, compilers) put into names.
INSIDE = ('_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_orig_mod')


def unwrap(content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the dictionaries around them.

    Where several dictionaries hold tensors, and no name says which is the
    model, their names become prefixes.

    Args:
        content: What the file holds.

    Returns:
        dict[str, Tensor]: Its tensors by name, empty if it has none.
    """
    content = _opened(content)
    tensors = _tensors(content)
    parts = {
        name: part
        for name, inner in content.items() if isinstance(name, str)
        and not name.startswith(STATES) and (part := _tensors(_opened(inner)))
    }
    if len(parts) == 1 and not tensors:
        return next(iter(parts.values()))
    for name, part in parts.items():
        tensors.update((f'{name}.{key}', value) for key, value in part.items())
    return tensors


def _opened(content: Any) -> Mapping:
    """What is inside the wrappers that are known by name."""
    for _ in range(DEPTH):
        inner = content if isinstance(content, Mapping) else {}
        content = next((inner[name] for name in WRAPPERS
                        if isinstance(inner.get(name), Mapping)
                        and inner[name]), None)
        if content is None:
            return inner
    return {}


def _tensors(content: Mapping) -> dict[str, Tensor]:
    """The tensors of one dictionary, with the versions of layers."""
    metadata = getattr(content, '_metadata', None)
    tensors = {} if metadata is None else type(content)()
    tensors.update((k, v) for k, v in content.items() if isinstance(v, Tensor))
    if metadata is not None:
        tensors._metadata = metadata
    return tensors


def common_prefix(keys: Iterable[str], own: Iterable[str]) -> str | None:
    """The prefix under which most of a network's names stand in a file.

    Args:
        keys (Iterable[str]): Names in the file.
        own (Iterable[str]): Names of the network's tensors.

    Returns:
        str | None: The prefix, which may be empty; None if less than half of
        the names stand under any.

    Raises:
        ValueError: If several have all that one has: the file holds more
            than one such network.
    """
    own, votes = set(own), Counter()
    for key in keys:
        tail, start = key, 0
        while True:
            votes[key[:start]] += tail in own
            head, dot, tail = tail.partition('.')
            if not dot:
                break
            start += len(head) + 1
    most = max(votes.values(), default=0)
    if 2 * most < len(own) or not most:
        return None
    best = [prefix for prefix, count in votes.items() if count == most]
    for prefix in ('', 'backbone.', *best[:1 if len(best) == 1 else 0]):
        if prefix in best:
            return prefix
    raise ValueError(
        f'it holds {len(best)} networks of this kind, under {sorted(best)}; '
        'choose one by `init_cfg.prefix`')


def strip_prefix(state: Mapping[str, Tensor],
                 prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it; versions of layers are kept."""
    tensors = type(state)()
    tensors.update((key[len(prefix):], value) for key, value in state.items()
                   if key.startswith(prefix))
    metadata = getattr(state, '_metadata', None)
    if metadata is not None:
        tensors._metadata = {
            f'{key}.'[len(prefix):].rstrip('.'): value
            for key, value in metadata.items() if f'{key}.'.startswith(prefix)
        }
    return tensors


def strip_shells(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the wrappers that all names have in common."""
    for shell in SHELLS:
        if state and all(key.startswith(shell) for key in state):
            return strip_shells(strip_prefix(state, shell))
    return dict(state)


def plain_name(name: str) -> str:
    """The name of a part as it is where no part is wrapped."""
    return '.'.join(word for word in name.split('.') if word not in INSIDE)

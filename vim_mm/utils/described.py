# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a config says of its data, for the cards of what it trains."""

from typing import Any, Dict, List, Mapping, Optional

from .config import type_name

#: Settings of stages that bring images to a size; pairs are width, height.
_SIZES = ('crop_size', 'scale', 'size')
_LOADERS = ('test_dataloader', 'val_dataloader', 'train_dataloader')


def image_size(cfg: Mapping[str, Any]) -> Optional[List[int]]:
    """Height and width that a config brings images to before it pads them.

    Args:
        cfg (Mapping): The whole config of one task.

    Returns:
        list[int] | None: The largest size where sizes vary; None where the
        pipeline does not say.
    """
    for loader in _LOADERS:
        for stage in reversed(_pipeline(cfg.get(loader))):
            for key in _SIZES:
                size = _pair(stage.get(key))
                if size is not None:
                    return size
    return None


def _pipeline(loader: Any) -> list:
    """The stages of a loader's data set, inside any wrappers."""
    dataset = loader.get('dataset') if isinstance(loader, Mapping) else None
    while isinstance(dataset, Mapping):
        if dataset.get('pipeline'):
            return [stage for stage in dataset['pipeline']
                    if isinstance(stage, Mapping)]
        inner = dataset.get('dataset') or dataset.get('datasets')
        dataset = inner[0] if isinstance(inner, (list, tuple)) and inner \
            else inner
    return []


def _pair(size: Any) -> Optional[List[int]]:
    if isinstance(size, (list, tuple)) and len(size) == 2:
        width, height = size
    else:
        width = height = size
    pair = [height, width]
    return pair if all(type(side) is int and side > 0
                       for side in pair) else None


def card_fields(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """What a config says for the card of what it trains.

    Args:
        cfg (Mapping): The whole config.

    Returns:
        dict: Its ``module_card``, and what that leaves open of data set,
        task and licence as a ModuleToZooHook has it.
    """
    fields: Dict[str, Any] = {}
    for hook in cfg.get('custom_hooks') or []:
        if isinstance(hook, Mapping) and type_name(hook) == 'ModuleToZooHook':
            fields.update({
                key: hook[key]
                for key in ('task', 'dataset', 'licence') if key in hook
            })
    fields.update(cfg.get('module_card') or {})
    size = image_size(cfg)
    if size is not None:
        fields.setdefault('image_size', size)
    return fields

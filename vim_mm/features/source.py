# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What stored features depend on: the network, and how images reach it."""

import hashlib
import json
import re
from typing import Any, Dict, Mapping

from torch import nn

from vim_mm.datasets import Views
from vim_mm.models.distillers import Outside
from vim_mm.utils.config import read_config
from vim_mm.zoo.fingerprint import trunk_fingerprint

#: What of a model gives its features.
PARTS = ('type', 'backbone', 'neck')
#: Settings that say where weights come from, not what they are.
PLACES = ('init_cfg', 'pretrained', 'zoo')
_POSITION = re.compile(r'pos_embed|position_embed')


def source_of(cfg: Mapping[str, Any], outside: Outside, views: Views,
              dtype: str) -> Dict[str, str]:
    """The source of a frozen network's features of a data set's views.

    Args:
        cfg (Mapping): What the network was built from, see
            :func:`build_outside`.
        outside (Outside): The network.
        views (Views): The data set.
        dtype (str): Number format of the features.
    """
    network = outside.network
    trunk = getattr(network.backbone, 'trunk', network.backbone)
    model = read_config(cfg['config']).model if 'config' in cfg \
        else cfg['model']
    return dict(
        trunk=trunk_fingerprint(trunk, ['outputs.0']),
        modules=_digest_beside(network, trunk),
        model=json.dumps(
            _without_places({k: model[k]
                             for k in PARTS if k in model}),
            sort_keys=True,
            default=repr),
        normalizer=repr(outside.normalizer),
        dtype=dtype,
        **views.recipe())


def _digest_beside(network: nn.Module, trunk: nn.Module) -> str:
    """Hash what the trunk's fingerprint leaves out.

    These are modules, gates and necks, and position embeddings.
    """
    inside = {
        id(tensor)
        for name, tensor in (*trunk.named_parameters(),
                             *trunk.named_buffers())
        if not _POSITION.search(name)
    }
    digest = hashlib.sha256()
    for part in ('backbone', 'neck'):
        module = getattr(network, part, None)
        if module is None:
            continue
        for name, tensor in (*module.named_parameters(),
                             *module.named_buffers()):
            if id(tensor) not in inside:
                value = tensor.detach().cpu().float().contiguous()
                digest.update(f'{part}.{name} {list(value.shape)}\n'.encode())
                digest.update(value.numpy().data)
    return digest.hexdigest()


def _without_places(cfg: Any) -> Any:
    if isinstance(cfg, Mapping):
        return {
            key: _without_places(value)
            for key, value in cfg.items() if key not in PLACES
        }
    if isinstance(cfg, (list, tuple)):
        return [_without_places(value) for value in cfg]
    return cfg

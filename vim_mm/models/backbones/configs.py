# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of trunks, and the weights that they name."""

import re
from typing import Any, Dict, List, Optional, Union

from mmengine.model import PretrainedInit

#: Settings that name a file beside ``init_cfg``.
_FILES = ('pretrained', 'checkpoint_path')
#: Names of the initializer; the last is of mmseg's ViT, for CLIP's tower.
_PRETRAINED = ('Pretrained', 'PretrainedInit', 'Pretrained_Part')

#: Settings of a backbone that change nothing of a trained one's function.
_IDLE = re.compile('init_cfg|pretrained|checkpoint.*|img_size|norm_cfg|with_cp'
                   '|.*drop.*|frozen_stages|norm_eval|_scope_|type|train|'
                   'task|tasks|like|convert_weights')


def innermost(cfg: dict) -> dict:
    """The config of a backbone that others, such as `to_moe`, may wrap."""
    while isinstance(cfg.get('trunk'), dict):
        cfg = cfg['trunk']
    return cfg


def with_innermost(cfg: dict, inner: dict) -> dict:
    """A copy of a config with another backbone inside."""
    if isinstance(cfg.get('trunk'), dict):
        return dict(cfg, trunk=with_innermost(cfg['trunk'], inner))
    return inner


def pretrained(cfg: dict) -> dict:
    """The 'Pretrained' entry of a backbone's ``init_cfg``, empty if none.

    A file in ``pretrained``, the older way of mmdet and mmseg, or in timm's
    ``checkpoint_path`` is one, too.
    """
    cfg = innermost(cfg)
    for key in _FILES:
        if cfg.get(key) and isinstance(cfg[key], str):
            return dict(type='Pretrained', checkpoint=cfg[key])
    entries = cfg.get('init_cfg') or []
    if isinstance(entries, dict):
        entries = [entries]
    return next((e for e in entries if is_pretrained(e.get('type'))), {})


def is_pretrained(kind: Union[str, type, None]) -> bool:
    """Whether an initializer is 'Pretrained', by any name or as a class."""
    if isinstance(kind, str):
        # in lazy configs by its whole path
        return kind.rpartition('.')[2] in _PRETRAINED
    return kind is PretrainedInit


def weights_of(cfg: dict) -> Optional[str]:
    """The file of a backbone's weights, None if its config names none."""
    own = innermost(cfg).get('checkpoint')  # as `load_moe` has
    return pretrained(cfg).get('checkpoint', own)


def without_weights(cfg: dict) -> dict:
    """A copy of a backbone's config that names no file."""
    inner = innermost(cfg)
    kept = {
        key: value
        for key, value in inner.items() if key != 'init_cfg' and not (
            key in _FILES and isinstance(value, str))
    }
    return with_innermost(cfg, kept)


def parts_with_weights(cfg: dict) -> List[str]:
    """Settings that hold a backbone's config with a file, as BiSeNet's do."""
    return [
        key for key, value in innermost(cfg).items()
        if isinstance(value, dict) and pretrained(value)
    ]


def settings_of(cfg: Any) -> Dict[str, Any]:
    """Settings of a backbone that may change its function, as it was given.

    Weights, image size and what acts in training only are left out.
    """
    if not isinstance(cfg, dict):
        return {}
    inner = innermost(cfg)
    found = {key: value for key, value in inner.items()
             if not _IDLE.fullmatch(key)}
    norm = inner.get('norm_cfg')
    if isinstance(norm, dict) and 'eps' in norm:
        found['norm_cfg.eps'] = norm['eps']
    return found

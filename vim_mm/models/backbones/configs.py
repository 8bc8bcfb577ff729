# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of trunks, and the weights that they name."""

from typing import Optional


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

    A file in ``pretrained``, the older way of mmdet and mmseg, is one, too.
    """
    cfg = innermost(cfg)
    if isinstance(cfg.get('pretrained'), str):
        return dict(type='Pretrained', checkpoint=cfg['pretrained'])
    entries = cfg.get('init_cfg') or []
    if isinstance(entries, dict):
        entries = [entries]
    return next((e for e in entries if e.get('type') == 'Pretrained'), {})


def weights_of(cfg: dict) -> Optional[str]:
    """The file of a backbone's weights, None if its config names none."""
    own = innermost(cfg).get('checkpoint')  # as `load_moe` has
    return pretrained(cfg).get('checkpoint', own)


def without_weights(cfg: dict) -> dict:
    """A copy of a backbone's config that names no file."""
    inner = innermost(cfg)
    kept = {key: value for key, value in inner.items() if key != 'init_cfg'}
    if isinstance(kept.get('pretrained'), str):
        del kept['pretrained']
    return with_innermost(cfg, kept)

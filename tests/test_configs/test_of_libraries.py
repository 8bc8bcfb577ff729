# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is looked at before a run holds for the libraries' own configs."""

from importlib import import_module
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from mmengine import registry
from mmengine.config import Config

from vim_mm.engine.rates import check_optimizer
from vim_mm.utils.arguments import check_near, check_switches
from vim_mm.utils.keys import check_keys
from vim_mm.utils.settings import check_settings

LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')
ROOTS = [registry.DATASETS, registry.HOOKS, registry.LOOPS, registry.METRICS,
         registry.MODELS, registry.OPTIM_WRAPPERS, registry.PARAM_SCHEDULERS,
         registry.TASK_UTILS, registry.TRANSFORMS]


def configs(library: str) -> List[Path]:
    home = Path(import_module(library).__file__).parent / '.mim/configs'
    return [path for path in sorted(home.glob('**/*.py'))
            if '_base_' not in path.parts]


def typed(value: Any) -> Iterator[dict]:
    if isinstance(value, dict):
        if isinstance(value.get('type'), str):
            yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from typed(each)


def refused(path: Path, scope: str, seen: Dict[Tuple[str, str], Any]) -> str:
    """Why a config would not be run, or nothing."""
    try:
        cfg = Config.fromfile(path)
    except Exception:  # of packages, or of files beside it, that are not there
        return ''
    try:
        check_keys(cfg)
        check_settings(cfg)
        for part in typed(cfg.to_dict()):
            for root in ROOTS:
                key = root.name, part['type']
                if key not in seen:
                    seen[key] = root.get(f'{scope}.{part["type"]}')
                if seen[key] is not None:
                    check_switches(seen[key], part)
                if isinstance(seen[key], type):
                    check_near(seen[key], set(part) - {'type', '_scope_'})
        optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
        if optimizer:
            check_optimizer(optimizer, 'optim_wrapper.optimizer')
    except ValueError as error:
        return f'{path}: {error}'
    return ''


@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('step', [
    50, pytest.param(1, marks=pytest.mark.slow)], ids=['some', 'all'])
def test_none_is_refused(library: str, step: int) -> None:
    """Of hundreds that are known to train."""
    registry.init_default_scope(library)
    paths, seen = configs(library), {}
    assert len(paths) > 400
    found = [refused(path, library, seen) for path in paths[::step]]
    assert not any(found), '\n'.join(filter(None, found))

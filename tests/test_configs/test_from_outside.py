# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Projects outside the repository inherit our bases in their own scope."""

from pathlib import Path

import pytest
from _outside import write_project
from mmengine.config import Config
from mmengine.runner import Runner

import vim_mm
from _tiny import KINDS

if not (Path(vim_mm.__file__).parent / '.mim').exists():
    pytest.skip('vim_mm runs from a source tree; install it',
                allow_module_level=True)


@pytest.fixture(autouse=True)
def quick_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds each, to report compilers and to lay out configs as text."""
    monkeypatch.setattr(Runner, '_log_env', lambda self, env: None)
    monkeypatch.setattr(Config, 'pretty_text', '')


def scopes(cfg: object) -> list:
    """All ``_scope_`` that are noted in a config."""
    if isinstance(cfg, dict):
        own = [cfg['_scope_']] if '_scope_' in cfg else []
        return own + [s for value in cfg.values() for s in scopes(value)]
    if isinstance(cfg, (list, tuple)):
        return [s for value in cfg for s in scopes(value)]
    return []


@pytest.mark.parametrize('kind', KINDS)
def test_bare_types_of_the_users_scope_are_found(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(write_project(tmp_path, kind))
    assert 'vim_mm' not in scopes(cfg._cfg_dict.to_dict())
    cfg.experiment_name = f'outside_{kind}'
    run = Runner.from_cfg(cfg)
    run.train()
    assert run.iter == 2
    assert any(p.abs().sum() > 0 for n, p in run.model.named_parameters()
               if '.up.' in n)


@pytest.mark.parametrize('kind', KINDS)
def test_a_missing_data_preprocessor_is_a_sentence(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of classifiers a default stacks images, and does not normalise."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(
        write_project(tmp_path, kind, 'data_preprocessor = None\n'))
    cfg.experiment_name = f'bare_{kind}'
    run = Runner.from_cfg(cfg)
    if kind == 'cls':
        said = []
        monkeypatch.setattr(run.logger, 'warning', said.append)
        run.train()
        assert any('has no `mean` and `std`' in line for line in said)
        return
    with pytest.raises(ValueError, match='no data preprocessor that stacks'):
        run.train()


def test_scopes_of_other_libraries_are_kept(tmp_path: Path) -> None:
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'vim_mm::_base_/schedules/vim_det_1x.py'\n")
    assert set(scopes(Config.fromfile(path)._cfg_dict.to_dict())) == {'mmdet'}
    path.write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'\n")
    assert set(scopes(Config.fromfile(path)._cfg_dict.to_dict())) == {'mmdet'}

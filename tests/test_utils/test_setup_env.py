# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What importing vim_mm does, and what it must not do."""

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

ROOT = Path(__file__).resolve().parents[2]


def test_import_is_light_and_prepares_the_stack() -> None:
    code = ('import vim_mm, sys; '
            'from mmengine.config.utils import MODULE2PACKAGE as table; '
            'assert table["mmseg"] == "mmseg" and "vim_mm" in table; '
            'print([m for m in ("mmcv", "mmdet", "mmseg", "mmpretrain", '
            '"torchvision") if m in sys.modules])')
    out = subprocess.run([sys.executable, '-c', code],
                         cwd=ROOT,
                         check=True,
                         text=True,
                         capture_output=True).stdout
    assert out.strip() == '[]'


def test_bases_of_mmseg_resolve(tmp_path: Path) -> None:
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'mmseg::_base_/default_runtime.py'\n")
    assert Config.fromfile(path).default_scope == 'mmseg'


def test_the_scope_names_a_module_and_no_distribution() -> None:
    name = MODULE2PACKAGE['vim_mm']
    package = Path(importlib.util.find_spec(name).origin).parent
    assert package == ROOT / 'vim_mm'
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version(name)

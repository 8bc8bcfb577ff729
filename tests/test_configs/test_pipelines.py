# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Our data configs under the default scope of whoever inherits them."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / 'configs/_base_/datasets').rglob('*.py'))
SCOPES = ('vim_mm', 'mmseg', 'mmdet', 'mmpretrain')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_pipelines_build_in_every_scope(path: Path) -> None:
    cfg = Config.fromfile(path)
    pipelines = [value for key, value in cfg.items() if 'pipeline' in key]
    for scope in SCOPES:
        init_default_scope(scope)
        for pipeline in pipelines:
            assert len(Compose(pipeline).transforms) == len(pipeline)


@pytest.mark.slow
def test_mmcv_transforms_need_no_other_import() -> None:
    """A name without a scope is found in a process that built nothing yet."""
    code = ('import vim_mm\n'
            'from mmengine.registry import TRANSFORMS, init_default_scope\n'
            "init_default_scope('vim_mm')\n"
            "TRANSFORMS.build(dict(type='LoadImageFromFile'))\n")
    ran = subprocess.run([sys.executable, '-c', code],
                         cwd=ROOT,
                         capture_output=True,
                         text=True)
    assert ran.returncode == 0, ran.stderr

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What importing vim_mm does, and what it must not do."""

import importlib.util
import os
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


#: Has nothing of what mmpretrain's multimodal models import.
TRANSFORMERS_5 = "__version__ = '5.24.0'\n"


def test_the_stack_beside_transformers_5(tmp_path: Path) -> None:
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers' / '__init__.py').write_text(TRANSFORMERS_5)
    info = tmp_path / 'transformers-5.24.0.dist-info'
    info.mkdir()
    info.joinpath('METADATA').write_text(
        'Metadata-Version: 2.1\nName: transformers\nVersion: 5.24.0\n')
    code = ('import sys, vim_mm, mmpretrain.models, mmdet.models, mmseg.models'
            '; from vim_mm.registry import MODELS\n'
            'import transformers; assert transformers.__version__[0] == "5"\n'
            'assert MODELS.get("mmpretrain.VisionTransformer")\n'
            'try: MODELS.build(dict(type="mmpretrain.Blip2VQA"))\n'
            'except ImportError as error: print(error)')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code],
                          cwd=tmp_path,
                          env=dict(os.environ, PYTHONPATH=path),
                          text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Blip2VQA of mmpretrain')
    assert 'transformers<5' in done.stdout

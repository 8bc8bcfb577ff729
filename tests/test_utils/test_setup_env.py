# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What importing vim_mm does, and what it must not do."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.slow
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


@pytest.mark.parametrize('own, installed, fits', [
    ('1.2.0', '4.55.4', True), ('1.2.0', '4.56.0', False),
    ('1.3.6', '4.57.6', True), ('1.3.6', '5.0.0', False)])  # yapf: disable
def test_which_transformers_multimodal_models_are_imported_beside(
        monkeypatch: pytest.MonkeyPatch, own: str, installed: str,
        fits: bool) -> None:
    from mmengine.registry import Registry
    from mmpretrain import version
    from mmpretrain.utils import dependency

    from vim_mm.utils.setup_env import leave_multimodal_out
    monkeypatch.setattr(version, '__version__', own)
    monkeypatch.setattr(dependency, 'distribution',
                        lambda name: SimpleNamespace(version=installed))
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    monkeypatch.setattr(dependency, 'register_multimodal_placeholder', None)
    leave_multimodal_out()
    assert dependency.WITH_MULTIMODAL == fits
    if not fits:
        models = Registry('model')
        dependency.register_multimodal_placeholder(['Blip2VQA'], models)
        limit = '4.56' if own == '1.2.0' else '5'
        with pytest.raises(ImportError, match=f'Blip2VQA .*<{limit}"'):
            models.build(dict(type='Blip2VQA'))

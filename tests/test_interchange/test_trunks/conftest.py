# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the tests of converted trunks share."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vim_mm.interchange.trunks import FAMILIES, convert_trunk

TRUNKS = Path(__file__).parents[3] / 'configs' / '_base_' / 'trunks'


@pytest.fixture(scope='session')
def close() -> dict[str, float]:
    """Tolerance of nets in double precision: only rounding is left."""
    return dict(rtol=1e-9, atol=1e-9)


@pytest.fixture(scope='session')
def trunk_config() -> Callable[[str], Config]:
    """Reads one of the trunk configs by name."""
    return lambda name: Config.fromfile(TRUNKS / f'{name}.py')


@pytest.fixture(scope='session')
def packaged_file() -> Callable[[str], Path]:
    """Finds a family's file in its pip package, or skips and names it."""

    def find(family: str) -> Path:
        packaged = FAMILIES[family].packaged
        try:
            files = metadata.files(packaged.package)
        except metadata.PackageNotFoundError:
            pytest.skip(f'package {packaged.requirement} is not installed')
        return next(
            Path(f.locate()) for f in files
            if f.name.endswith(packaged.suffix))

    return find


@pytest.fixture(scope='session')
def converted(tmp_path_factory, packaged_file) -> Callable[[str, str], Path]:
    """Converts a family's packaged file once; ``(family, name) -> file``."""
    folder = tmp_path_factory.mktemp('weights')

    def convert(family: str, name: str) -> Path:
        packaged_file(family)
        path = folder / f'{name}.safetensors'
        return path if path.exists() else convert_trunk(family, None, path)

    return convert


@pytest.fixture(scope='session')
def build_converted() -> Callable[..., nn.Module]:
    """Builds the backbone a converted file names, with its tensors."""

    def build(path: Path, **overrides) -> nn.Module:
        with safe_open(path, 'pt') as file:
            cfg = json.loads(file.metadata()['backbone'])
        net = MODELS.build(cfg | overrides)
        net.load_state_dict(load_file(path), strict=True)
        net.eval()  # mmpretrain's returns None
        return net

    return build


@pytest.fixture(scope='session')
def picture() -> Callable[[str, Config, int], Tensor]:
    """Loads a square photograph, normalised as the trunk asks."""
    data = pytest.importorskip('skimage.data')
    transform = pytest.importorskip('skimage.transform')

    def load(name: str, cfg: Config, size: int) -> Tensor:
        image = getattr(data, name)()
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = transform.resize(
            image[top:top + side, left:left + side], (size, size),
            preserve_range=True,
            anti_aliasing=True)
        mean, std = (
            torch.tensor(v).view(3, 1, 1)
            for v in cfg.trunk_normalization.values())
        x = torch.from_numpy(image).permute(2, 0, 1).float()
        return ((x - mean) / std)[None]

    return load


@pytest.fixture(scope='session')
def check_config(trunk_config) -> Callable[[str, dict], None]:
    """Checks that a trunk config takes exactly these converted tensors."""

    def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
        return {k: v.shape for k, v in state.items()}

    def check(name: str, state: dict[str, Tensor]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv('VIM_MM_WEIGHTS', raising=False)
            cfg = trunk_config(name).trunk
        file = cfg.pop('init_cfg').checkpoint
        assert file == f'weights/{name}.safetensors'
        MODELS.get(cfg.type)
        with torch.device('meta'):
            dense = shapes(MODELS.build(cfg).state_dict())
            if cfg.type == 'mmpretrain.VisionTransformer':
                # what dense heads do not take is the final norm alone
                assert state.keys() - dense.keys() == {
                    'ln1.weight', 'ln1.bias'
                }
                cfg.final_norm = True
            whole = MODELS.build(cfg)
        assert shapes(whole.state_dict()) == shapes(state)

    return check

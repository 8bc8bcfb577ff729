# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of experts where there are none, and the reverse."""

from pathlib import Path

import pytest
import torch
from _moe_tiny import build_moe, moe_cfg, ordinary_cfg, write_moe
from safetensors.torch import save_file

from _tiny import KINDS, build_runner, vit
from vim_mm.models.backbones import build_trunk
from vim_mm.models.moe import MoEFileError, add_task, load_moe, save_moe
from vim_mm.registry import MODELS


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    return tmp_path / 'trunk.safetensors'


def source(file: Path, **kwargs) -> dict:
    return dict(type='Pretrained', checkpoint=str(file), **kwargs)


@pytest.mark.parametrize('grown', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_experts_in_a_dense_model(kind: str, grown: bool, path: Path) -> None:
    """They would be left out, and MLPs stay random."""
    trunk = build_moe()
    if grown:
        add_task(trunk, 'new', 2, like='seg')
    save_moe(trunk, moe_cfg(), path)
    words = "trunk with experts, but `backbone` .*has none.*'vim_mm.load_moe'"
    cfg = ordinary_cfg(kind)
    for init in (source(path), [source(path), source(path)]):
        cfg.backbone = vit(out_indices=[2], init_cfg=init)
        runner = build_runner(kind, cfg, path.parent / 'run', iters=1)
        with pytest.raises(ValueError, match=words) as error:
            runner.train()
        assert '\n' not in str(error.value)
    # those with experts take them
    if not grown:
        cfg.backbone = moe_cfg(trunk=vit(out_indices=[2],
                                         init_cfg=source(path)))
        runner = build_runner(kind, cfg, path.parent / 'right', iters=1)
        runner.train()


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_experts_in_a_dense_trunk_of_modules(suffix: str,
                                             path: Path) -> None:
    state = write_moe(path).state_dict()
    file = path.with_suffix(suffix)
    if suffix == '.pth':
        torch.save(state, file)
    with pytest.raises(ValueError, match='`model.backbone.trunk` .*has none'):
        build_trunk(vit(out_indices=[2], init_cfg=source(file)))


def test_a_dense_file_is_no_moe_file(path: Path) -> None:
    save_file(MODELS.build(vit()).state_dict(), path)
    with pytest.raises(MoEFileError, match='no experts; .*vim_mm.to_moe'):
        load_moe(str(path))
    # experts start from it
    build_trunk(moe_cfg(trunk=vit(out_indices=[2], init_cfg=source(path))))

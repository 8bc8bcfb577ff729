# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The trunk of a new task: a config of ours, or one of the user's."""

import os.path as osp
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor

from vim_mm.models.backbones.blank_image import in_eval, run_blank
from vim_mm.models.layouts import as_levels
from vim_mm.registry import MODELS
from vim_mm.utils.config import config_of
from vim_mm.utils.files import shipped
from vim_mm.utils.quiet_logs import quiet

PROBE = 224


class TrunkError(ValueError):
    """A trunk that no new task can be written for."""


@dataclass
class OwnTrunk:
    """A trunk, as far as the config of a task depends on it.

    Attributes:
        path (Path): The config.
        base (str, optional): What the new config inherits, if it can.
        cfg (ConfigDict): Config of the trunk.
        normalized (bool): Whether the config has ``trunk_normalization``.
        strides (list[int]): Of its maps, in order.
        size (tuple[int, int], optional): Height and width of the images that
            alone it takes, if it is fixed.
        lacks (str, optional): The file of its weights, if it is not there.
        slots (str, optional): Pattern over names of its submodules, of a
            class without one of its own.
    """
    path: Path
    base: Optional[str]
    cfg: ConfigDict
    normalized: bool
    strides: List[int]
    size: Optional[Tuple[int, int]]
    lacks: Optional[str]
    slots: Optional[str] = None

    @property
    def is_plain(self) -> bool:
        """Whether all its maps have one stride, as those of a ViT."""
        return len(set(self.strides)) == 1


@quiet()
def find_trunk(name: str, scope: str) -> OwnTrunk:
    """Find a trunk and see what maps it gives.

    Args:
        name (str): Name of a config in ``configs/_base_/trunks``, or the path
            of a config with a ``trunk`` or a ``model.backbone``.
        scope (str): The library whose types may be named without a prefix.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it has no trunk that gives maps.
    """
    path, base = _locate(name)
    cfg = config_of(str(path))
    trunk, slots = cfg.get('trunk'), cfg.get('slots')
    if trunk is None:
        base = None
        backbone = (cfg.get('model') or {}).get('backbone') or {}
        trunk = backbone.get('trunk', backbone)
        slots = backbone.get('slots')
        scope = cfg.get('default_scope', scope)
    if not trunk or 'type' not in trunk:
        raise TrunkError(f'The config {path} has no `trunk`; give one of a '
                         'backbone, such as those in configs/_base_/trunks.')
    if base is None and '.' not in trunk.type:
        trunk.type = f'{scope}.{trunk.type}'
    strides, size = _maps(trunk, scope, path)
    file = (trunk.get('init_cfg') or {}).get('checkpoint')
    lacks = None
    if isinstance(file, str) and '://' not in file and not osp.isfile(
            osp.expanduser(file)):
        lacks = file
    return OwnTrunk(path, base, trunk, 'trunk_normalization' in cfg, strides,
                    size, lacks, slots)


def known_trunks() -> List[str]:
    """Names of the trunk configs there are."""
    return sorted(path.stem for path in shipped('configs').glob(
        '_base_/trunks/*.py'))


def _locate(name: str) -> Tuple[Path, Optional[str]]:
    known = known_trunks()
    if name in known:
        return (shipped('configs') / '_base_/trunks' / f'{name}.py',
                f'vim_mm::_base_/trunks/{name}.py')
    path = Path(name)
    if path.is_file():
        return path.resolve(), str(path.resolve())
    near = get_close_matches(name, known, 3, 0.4)
    hint = f'did you mean {" or ".join(near)}?' if near else \
        f'there are {", ".join(known)}.'
    raise FileNotFoundError(f'There is no trunk {name!r}, by name or as a '
                            f'config file; {hint}')


def _maps(trunk: ConfigDict, scope: str,
          path: Path) -> Tuple[List[int], Optional[Tuple[int, int]]]:
    """Strides of a trunk's maps; weights are not needed for that."""
    bare = deepcopy(trunk)
    bare.pop('init_cfg', None)
    try:
        with DefaultScope.overwrite_default_scope(scope):
            network = MODELS.build(bare)
    except Exception as error:  # a library may raise any
        said = str(error) or type(error).__name__
        raise TrunkError(f'The trunk of {path} cannot be built: '
                         f'{said.rstrip(".")}.') from error
    with in_eval(network), torch.no_grad():
        outputs, size = run_blank(network, PROBE)
    levels = as_levels(outputs)
    if not all(isinstance(x, Tensor) and x.dim() == 4 for x in levels):
        raise TrunkError(
            f'The trunk of {path} gives no maps, but '
            f'{[tuple(getattr(x, "shape", ())) for x in levels]}; let it give '
            "some (`out_type='featmap'`, `features_only=True`).")
    strides = [round(size[0] / x.shape[-2]) for x in levels]
    return strides, None if size == (PROBE, PROBE) else size

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A finished fusion folded into one plain module, for inference."""

from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Optional, Sequence

import torch
from mmengine.model import BaseModel
from torch import Tensor

from vim_mm.models.backbones import ViMBackbone, Weights, gates_to_fold
from vim_mm.models.head_origin import head_parts
from vim_mm.utils.kinds import KINDS
from vim_mm.zoo import ModuleCard, head_state, save_module

#: Largest difference of the outputs, in units of the largest output, that
#: rounding explains; what dropped weights explain comes on top.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Baked:
    """What :func:`bake` made.

    Attributes:
        card (ModuleCard): As written into the zoo.
        kept (Weights): The weights that were folded.
        dropped (Weights): Weights other than zero that were left out.
        difference (float): Largest difference between the outputs of the
            fused and of the baked backbone on random images, in units of
            the largest output.
    """
    card: ModuleCard
    kept: Weights
    dropped: Weights
    difference: float


@torch.no_grad()
def bake(model: BaseModel,
         name: str,
         zoo: str,
         task: Optional[str] = None,
         threshold: float = 0.01,
         size: int = 224,
         overwrite: bool = False,
         card: Optional[dict] = None) -> Baked:
    """Fold the fusion of a trained model's backbone into a module of a zoo.

    The new module adds in every slot what the fused ones added there, and
    runs with ``modules=[name], fusion=None``. Weights are folded as they are:
    those left after dropping are not scaled up, so that a module of next to
    no weight takes next to nothing with it.

    Args:
        model (BaseModel): With a :class:`ViMBackbone` that has a fusion; left
            as it is. Its neck and head go into the zoo too.
        name (str): Name of the new module.
        zoo (str): Directory of the zoo.
        task (str, optional): The task of the fusion; the one that runs when
            None.
        threshold (float): In every slot, modules whose weight is smaller in
            magnitude are dropped. Modules beside the trunk hand a state from
            level to level and are dropped in all slots or in none. Defaults
            to 0.01.
        size (int): Side of the random images, in pixels. Defaults to 224.
        overwrite (bool): Replace a module of that name. Defaults to False.
        card (dict, optional): What else the card says: ``task``, ``dataset``
            and so on, see :func:`save_module`. Defaults to None.

    Raises:
        ValueError: If the fusion cannot be folded, nothing is left of it,
            outputs are not finite, or they differ from those of the fusion
            without the dropped weights.
        ZooError: If the module cannot be written.
    """
    if not isinstance(model.backbone, ViMBackbone):
        raise ValueError(f'{type(model.backbone).__name__} is no ViMBackbone, '
                         'so there is no fusion to bake.')
    backbone = deepcopy(model.backbone).eval()
    backbone.select_task(task or backbone.task)
    kept, dropped = gates_to_fold(backbone, threshold)
    origin = dict(
        fusion=type(backbone.fusion).__name__,
        task=backbone.task,
        threshold=threshold,
        weights=kept)
    picture = torch.randn(
        2, 3, size, size, generator=torch.Generator().manual_seed(0))
    picture = picture.to(backbone.trunk_fingerprint.device)
    fused = backbone(picture)
    _keep(backbone, kept)
    lighter = backbone(picture)
    backbone.merge(name)
    baked = backbone(picture)
    difference = _relative(fused, baked)
    if not isfinite(difference):
        raise ValueError('The outputs of the fusion or of the baked module '
                         'are not finite, so they cannot be compared; it was '
                         'not saved. Check the weights of both.')
    rounding = _relative(lighter, baked)
    if rounding > TOLERANCE:
        raise ValueError(
            f'The baked module differs by {rounding:.1e} of the largest '
            'output from the fusion without the dropped weights, more than '
            f'{TOLERANCE:.0e}; it was not saved.')
    card = dict(card or {})
    card.setdefault('task', _kind(model))
    card['training'] = dict(
        card.get('training', {}),
        baked_from=dict(origin, difference=difference))
    written = save_module(
        backbone,
        name,
        zoo,
        head=head_state(model) or None,
        head_parts=head_parts(model),
        overwrite=overwrite,
        **card)
    return Baked(written, kept, dropped, difference)


def _kind(model: BaseModel) -> Optional[str]:
    """The kind of task of a model, by the library of its class."""
    library = type(model).__module__.partition('.')[0]
    return next((name for name, kind in KINDS.items()
                 if kind.scope == library), None)


def _keep(backbone: ViMBackbone, weights: Weights) -> None:
    """Let a fusion of given weights take the place of the one there is."""
    task, fusion = backbone.task, backbone.fusion
    kind = 'FixedMerge' if fusion.merges else 'FixedFusion'
    backbone.set_fusion(
        dict(
            type=kind,
            tasks={task: fusion.task_modules[task]},
            weights=weights))


def _relative(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference, in units of the largest expected number."""
    largest = max(float(level.abs().max()) for level in expected)
    gaps = [(first - second).abs().max()
            for first, second in zip(expected, found)]
    return float(torch.stack(gaps).max()) / largest  # NaN if one is

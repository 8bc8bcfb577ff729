# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The model of a config with the modules of a zoo that fit it."""

from copy import deepcopy
from typing import Dict, List, Tuple

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel

from vim_mm.models import build_model
from vim_mm.utils.config import type_name
from vim_mm.utils.messages import first_lines
from vim_mm.zoo import Zoo, ZooError


def fitting_model(cfg: Config,
                  zoo: str) -> Tuple[BaseModel, Dict[str, str]]:
    """The config's model with all modules of a zoo that fit its trunk.

    Args:
        cfg (Config): The whole config.
        zoo (str): Directory of the zoo.

    Returns:
        tuple[BaseModel, dict[str, str]]: The model, and the modules that do
        not fit or are not valid, each with the reason.

    Raises:
        ZooError: If none fits.
    """
    fits, skipped, model = Zoo(zoo).names(), Zoo(zoo).misnamed(), None
    bare = unfused_model(cfg, zoo, []).backbone
    for name in fits:
        try:
            bare.load_modules(zoo, [name])
        except ZooError as error:
            skipped[name] = str(error)
        except ValueError:
            pass  # a backbone that is built for it may have its slots
    del bare  # a second trunk may be large
    fits = [name for name in fits if name not in skipped]
    try:
        model = unfused_model(cfg, zoo, fits)
    except ValueError:
        misfits = _misfits(cfg, zoo, fits)
        fits = [name for name in fits if name not in misfits]
        skipped.update(misfits)
    if not fits:
        reasons = first_lines(f'  {name}: {why}'
                              for name, why in skipped.items())
        raise ZooError('\n'.join([
            f'No module of the zoo {zoo!r} fits this config; it holds '
            f'{len(skipped)}.', *reasons
        ]))
    return model or unfused_model(cfg, zoo, fits), skipped


def _misfits(cfg: Config, zoo: str, names: List[str]) -> Dict[str, str]:
    """Modules that the backbone refuses by themselves, with its reason."""
    reasons = {}
    for name in names:
        try:
            unfused_model(cfg, zoo, [name])
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def unfused_model(cfg: Config, zoo: str, modules: List[str]) -> BaseModel:
    """The config's model with these modules instead of its own, no fusion.

    They join the finished model: heads may ask for the channels before them,
    which streams of several modules do not tell. Its neck reads one stream.
    """
    cfg = deepcopy(cfg)
    neck = cfg.model.get('neck') or []
    for part in neck if isinstance(neck, list) else [neck]:
        if type_name(part) == 'ViMFusionNeck':
            for key in ('modules', 'fusion', 'task', 'learn_tasks'):
                part.pop(key, None)
    model = build_model(
        cfg, zoo=None, modules=[], new_module=None, fusion=None, task=None)
    model.backbone.load_modules(zoo, modules)
    return model.to(get_device()).eval()

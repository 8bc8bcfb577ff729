# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""PEFT's adapter directory: a configuration and the tensors of LoRA."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from torch import Tensor

from vim_mm.utils.files import new_folder
from vim_mm.utils.messages import VALUE, InputError, cut, short
from vim_mm.utils.reading import ReadError, read_json
from vim_mm.utils.tensor_files import load_tensors, read_header
from vim_mm.zoo.card import ZooError
from vim_mm.zoo.files import pack
from .peft_patterns import Patterns

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
BASE = 'base_model.model.'  # what PEFT's wrappers put before every name
#: Tensors of an adapter.
LAYERS = 10_000

# how an adapter was started, trained or found; nothing that it computes now
HARMLESS = {
    'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'bias',
    'ensure_weight_tying', 'eva_config', 'exclude_modules', 'inference_mode',
    'init_lora_weights', 'layers_pattern', 'layers_to_transform', 'lora_alpha',
    'lora_dropout', 'megatron_core', 'peft_type', 'peft_version',
    'qalora_group_size', 'r', 'rank_pattern', 'revision', 'runtime_config',
    'target_modules', 'task_type', 'use_rslora'
}
# these starts leave the weights of the base model as they are
STARTS = (True, False, 'gaussian', 'orthogonal', 'eva')


class LinearChange(NamedTuple):
    """``scale * up @ down``, added to the weight of a linear layer.

    Attributes:
        down (Tensor): PEFT's ``lora_A``, (r, in).
        up (Tensor): PEFT's ``lora_B``, (out, r).
        scale (Fraction): Its factor, exactly.
    """

    down: Tensor
    up: Tensor
    scale: Fraction


def read_adapter(folder: Path) -> Dict[str, LinearChange]:
    """Read a LoRA adapter that does nothing but change linear layers.

    Args:
        folder (Path): PEFT's adapter directory.

    Returns:
        dict[str, LinearChange]: By the names of the layers in their model.

    Raises:
        ZooError: If it is damaged, or does anything else; the sentence names
            it.
    """
    try:
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict):
            raise ReadError('it is no object')
    except FileNotFoundError:
        raise ZooError(f"'{folder}' holds no {CONFIG}: name the directory "
                       'that PEFT wrote.') from None
    except ReadError as error:
        raise ZooError(f"'{folder / CONFIG}' cannot be used: {error}."
                       ) from None
    try:
        _check(config)
        return _pair(config, _read_tensors(folder / TENSORS))
    except InputError as error:
        raise ZooError(f"'{folder}' cannot become a module: {error}") from None


def _check(config: dict) -> None:
    """Refuse everything but plain LoRA, known here or not."""
    kind = config.get('peft_type')
    if kind != 'LORA':
        raise ZooError(f'its peft_type is {short(kind)}, and only LORA has a '
                       'twin here (vim_mm.LoRA).')
    if config.get('modules_to_save'):
        raise ZooError(
            f"its modules_to_save, {short(config['modules_to_save'])}, are "
            'whole layers beside the adapter, and a module holds the adapter '
            'alone: save it without them.')
    if config.get('bias', 'none') != 'none':
        raise ZooError(f"its bias={short(config['bias'])} changes biases of "
                       'the trunk, which stays frozen: train with '
                       "bias='none'.")
    start = config.get('init_lora_weights', True)
    if start not in STARTS:
        raise ZooError(
            f'its init_lora_weights={short(start)} changes the weights of the '
            'base model: let PEFT convert it to plain LoRA when it saves '
            '(path_initial_model_for_weight_conversion).')
    for key, value in config.items():
        if value and key not in HARMLESS:
            raise ZooError(f'its setting {cut(key, VALUE)}={short(value)} is '
                           'more than plain LoRA: let PEFT train or save it '
                           'without.')
    patterns = config.get('alpha_pattern') or {}
    if not isinstance(patterns, dict):
        raise ZooError(f'its alpha_pattern {short(patterns)} is no object.')
    for alpha in (config.get('lora_alpha'), *patterns.values()):
        # no float holds a larger one
        if type(alpha) not in (int, float) or not abs(alpha) < 1e300:
            raise ZooError(f"{short(alpha)} in {CONFIG} is no 'lora_alpha': "
                           'it must be a finite number.')


def _read_tensors(path: Path) -> Dict[str, Tensor]:
    if not path.is_file():
        raise ZooError(
            f'it holds no {TENSORS}. Pickles (adapter_model.bin) are not '
            'read: save it with PEFT as safetensors.')
    if len(read_header(path).shapes) > LAYERS:
        raise ZooError(f'it changes more than {LAYERS:,} layers.')
    return load_tensors(path)


def _pair(config: dict, tensors: Dict[str, Tensor]) -> Dict[str, LinearChange]:
    patterns = Patterns(config.get('alpha_pattern') or {})
    found: Dict[str, Dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(
            rf'(?:{re.escape(BASE)})?(.+)\.lora_(A|B)\.weight', key)
        if match is None or tensor.ndim != 2:
            raise ZooError(
                f"its tensor '{key}' of shape {tuple(tensor.shape)} is no "
                'lora_A or lora_B of a linear layer: plain LoRA alone (no '
                'DoRA, no biases, no embeddings, no whole layers) has a twin '
                'here.')
        pair = found.setdefault(match[1], {})
        if match[2] in pair:
            raise ZooError(f"its layer '{match[1]}' has two lora_{match[2]}: "
                           'save it again.')
        pair[match[2]] = tensor.float()
    if not found:
        raise ZooError('it changes no layer.')
    changes = {}
    for name, pair in found.items():
        if len(pair) < 2:
            raise ZooError(f"its layer '{name}' has only one of lora_A and "
                           'lora_B: save it again.')
        down, up = pair['A'], pair['B']
        if down.shape[0] != up.shape[1] or not len(down):
            raise ZooError(
                f"its layer '{name}' has a lora_A of rank {down.shape[0]} and "
                f'a lora_B of rank {up.shape[1]}: save it again.')
        alpha = patterns.find(name, config['lora_alpha'])
        scale = Fraction(alpha / len(down)**0.5) if config.get(
            'use_rslora') else Fraction(alpha) / len(down)
        changes[name] = LinearChange(down, up, scale)
    return changes


def write_adapter(folder: Path,
                  rank: int,
                  alpha: float,
                  tensors: Dict[str, Tensor],
                  base_model: Optional[str] = None) -> None:
    """Write a LoRA adapter as PEFT does.

    Args:
        folder (Path): The directory to make.
        rank (int): Its rank.
        alpha (float): Numerator of its scale.
        tensors (dict[str, Tensor]): ``'<layer>.lora_A.weight'`` and
            ``lora_B``, by the names of the layers in their model.
        base_model (str, optional): Where their model is found.

    Raises:
        ZooError: If the directory is there already.
    """
    layers = sorted({key.rsplit('.', 2)[0] for key in tensors})
    config = dict(
        peft_type='LORA',
        task_type=None,
        base_model_name_or_path=base_model,
        inference_mode=True,
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=0.0,
        bias='none',
        target_modules=_escaped(layers))
    with new_folder(folder, ZooError) as draft:
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + '\n')
        (draft / TENSORS).write_bytes(
            pack({
                BASE + key: value
                for key, value in tensors.items()
            }))


def _escaped(layers: List[str]) -> str:
    """A pattern of whole names: a list would match the ends of names."""
    return '|'.join(re.escape(layer) for layer in layers)

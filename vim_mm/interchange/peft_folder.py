# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""PEFT's adapter directory: a configuration and the tensors of LoRA."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional

from torch import Tensor

from vim_mm.utils.files import new_folder
from vim_mm.utils.messages import VALUE, InputError, cut, short
from vim_mm.utils.reading import ReadError, read_json
from vim_mm.utils.tensor_files import load_tensors, read_header
from vim_mm.zoo.card import ZooError
from vim_mm.zoo.files import pack
from .peft_changes import LinearChange
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
    'lora_dropout', 'megatron_core', 'modules_to_save', 'peft_type',
    'peft_version', 'qalora_group_size', 'r', 'rank_pattern', 'revision',
    'runtime_config', 'target_modules', 'task_type', 'use_rslora'
}
# these starts leave the weights of the base model as they are
STARTS = (True, False, 'gaussian', 'orthogonal', 'eva')


class Adapter(NamedTuple):
    """What an adapter changes, by the names of the layers in their model.

    Attributes:
        changes (dict[str, LinearChange]): Linear layers.
        others (list[str]): Layers that it changes in any other way, or
            brings whole (``modules_to_save``).
    """

    changes: Dict[str, LinearChange]
    others: List[str]


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter.

    Args:
        folder (Path): PEFT's adapter directory.

    Returns:
        Adapter: What it changes.

    Raises:
        ZooError: If it is damaged, or its settings are more than plain LoRA;
            the sentence names what.
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
        raise ZooError(f'it holds more than {LAYERS:,} tensors.')
    return load_tensors(path)


def _pair(config: dict, tensors: Dict[str, Tensor]) -> Adapter:
    patterns = Patterns(config.get('alpha_pattern') or {})
    found: Dict[str, Dict[str, Tensor]] = {}
    others = set()
    for key, tensor in tensors.items():
        key = key.removeprefix(BASE)
        match = re.fullmatch(r'(.+)\.lora_(A|B)\.weight', key)
        if match is None or tensor.ndim != 2:
            others.add(re.split(r'\.lora_|\.[^.]*$', key)[0])
            continue
        pair = found.setdefault(match[1], {})
        if match[2] in pair:
            raise ZooError(f"its layer '{match[1]}' has two lora_{match[2]}: "
                           'save it again.')
        pair[match[2]] = tensor.float()
    if not found:
        names = ', '.join(sorted(others)[:3])
        raise ZooError(f"it changes no linear layer, but {names or 'nothing'}"
                       ': its target_modules name none.')
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
    return Adapter(changes, sorted(others))


def write_adapter(folder: Path,
                  rank: int,
                  alpha: float,
                  changes: Mapping[str, LinearChange],
                  base_model: Optional[str] = None) -> None:
    """Write a LoRA adapter as PEFT does.

    Args:
        folder (Path): The directory to make.
        rank (int): Its rank.
        alpha (float): Numerator of its scale.
        changes (Mapping): The changes, all of this rank and scale, by the
            names of the layers in their model.
        base_model (str, optional): Where their model is found.

    Raises:
        ZooError: If the directory is there already.
    """
    config = dict(
        peft_type='LORA',
        task_type=None,
        base_model_name_or_path=base_model,
        inference_mode=True,
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=0.0,
        bias='none',
        # a pattern of whole names: a list would match the ends of names
        target_modules='|'.join(map(re.escape, sorted(changes))))
    tensors = {}
    for name, (down, up, _) in changes.items():
        tensors[f'{BASE}{name}.lora_A.weight'] = down
        tensors[f'{BASE}{name}.lora_B.weight'] = up
    with new_folder(folder, ZooError) as draft:
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + '\n')
        (draft / TENSORS).write_bytes(pack(tensors))

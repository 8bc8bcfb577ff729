# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Experts that start from a dense MLP.

Expert e holds slice ``e % slices`` of the MLP's hidden units. Its output
matrix is scaled so that the mixture of all experts with equal gates is the
dense MLP: by E over the number of experts that hold its slice. The output
bias, which every expert adds, is not.

Experts 0 to ``slices - 1`` together are one copy of the MLP, the next ones
another. Routers start with the same row for all experts of a copy: a token
whose ``k = slices`` experts are chosen gets a whole MLP, not the same slice
twice and another not at all. Of the ViT-S of the demo with 8 experts, 4 per
token, maps keep a cosine of 0.98 with the dense ones so, and of 0.7 without.
"""

from typing import Dict, Mapping, Optional, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from vim_mm.utils.arguments import check_number
from .moe_mlp import MoEMlp


def slices_of(w1: Tensor, b1: Optional[Tensor], w2: Tensor,
              b2: Optional[Tensor], layer: MoEMlp) -> Dict[str, Tensor]:
    """The experts' parameters, made of a dense MLP's.

    Args:
        w1, b1, w2, b2 (Tensor): Those of the MLP, (H, C), (H), (C, H), (C);
            biases are zero when None.
        layer (MoEMlp): Whose experts they are for.

    Returns:
        dict[str, Tensor]: The same, stacked for all experts.

    Raises:
        ValueError: If the experts cannot hold all hidden units.
    """
    num, dims, hidden = layer.num_first, layer.dims, layer.experts.hidden
    slices = w1.size(0) // hidden
    if (w1.size(1) != dims or w2.shape != w1.t().shape
            or w1.size(0) % hidden or slices > num):
        raise ValueError(
            f'A dense MLP {w1.size(1)} -> {w1.size(0)} -> {w2.size(0)} cannot '
            f'become {num} experts {dims} -> {hidden} -> {dims}, each of '
            'which holds a slice of its hidden units.')
    b1 = w1.new_zeros(w1.size(0)) if b1 is None else b1
    b2 = w2.new_zeros(dims) if b2 is None else b2
    held = [expert % slices for expert in range(num)]
    scale = w2.new_tensor([num / held.count(index) for index in held])
    return dict(
        w1=w1.unflatten(0, (slices, hidden))[held],
        b1=b1.unflatten(0, (slices, hidden))[held],
        w2=w2.unflatten(1, (slices, hidden)).transpose(0, 1)[held] *
        scale[:, None, None],
        b2=b2.expand(num, dims))


def disturb(stacked: Dict[str, Tensor], std: float,
            generator: torch.Generator) -> None:
    """Add noise to weights, relative to the spread of their values."""
    for name in ('w1', 'w2'):
        weight = stacked[name]
        noise = torch.randn(weight.shape, generator=generator)
        stacked[name] = weight + std * weight.std() * noise.to(weight)


class Upcycling:
    """Hook before loading: a dense file fills the experts of a trunk.

    Routers, which no dense file has, find all experts of one copy of the MLP
    equally good. A plain object without the trunk, so that a deep copy of the
    trunk loads into itself.

    Args:
        pairs (dict[str, str]): Names of the layers of experts, to those of
            the second linear layers of the MLPs whose place they took.
        perturb (float): Standard deviation of the noise that makes experts
            with the same hidden units differ, relative to that of the
            weights; 0 for none.
        seed (int): Of the noise.
    """

    def __init__(self, pairs: Dict[str, str], perturb: float,
                 seed: int) -> None:
        check_number(perturb, 'perturb')
        self.pairs = pairs
        self.perturb = perturb
        self.seed = seed

    def __call__(self, trunk: nn.Module, state_dict: dict, prefix: str,
                 *_) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        started = 0
        for name, second in self.pairs.items():
            if f'{prefix}{name}.weight' in state_dict:
                self._fill(
                    trunk.get_submodule(name), state_dict, f'{prefix}{name}.',
                    f'{prefix}{second}.', generator)
                started += 1
        if started:
            noise = f', with noise of {self.perturb}' if self.perturb else ''
            print_log(
                f'{type(trunk).__name__}: the experts of {started} layers '
                f'start from the slices of dense MLPs{noise}; their routers '
                'find all slices of one copy equally good.',
                logger='current')

    def from_layers(self, layers: Mapping[str, MoEMlp],
                    dense: Mapping[str, nn.Module]) -> None:
        """Fill experts from linear layers, as from a file of them.

        Args:
            layers (Mapping): The layers of experts by name.
            dense (Mapping): The linear layers whose place they took, by name.
        """
        state = {
            f'{name}.{key}': value.detach()
            for name, layer in dense.items()
            for key, value in layer.state_dict().items()
        }
        generator = torch.Generator().manual_seed(self.seed)
        for name, layer in layers.items():
            self._fill(layer, state, f'{name}.', f'{self.pairs[name]}.',
                       generator)
        for name, layer in layers.items():
            layer.load_state_dict({
                key[len(name) + 1:]: value
                for key, value in state.items() if key.startswith(f'{name}.')
            })

    def _fill(self, layer: MoEMlp, state: dict, first: str, second: str,
              generator: torch.Generator) -> None:
        """Replace a dense MLP's tensors in a state dict by a layer's."""
        dense = [
            state.pop(f'{first}weight'),
            state.pop(f'{first}bias', None),
            state.pop(f'{second}weight', None),
            state.pop(f'{second}bias', None)
        ]
        if dense[2] is None:
            raise ValueError(
                f"The file has '{first}weight', but lacks '{second}weight' of "
                'the same MLP; it is of another trunk, or cut short.')
        try:
            stacked = slices_of(*dense, layer)
        except ValueError as error:
            raise ValueError(f"'{first[:-1]}': {error}") from None
        if self.perturb and not dense[0].is_meta:
            disturb(stacked, self.perturb, generator)
        slices = len(dense[0]) // layer.experts.hidden
        for router in layer.routers.values():
            router.share(slices)
        start = 0
        for index, group in enumerate(layer.experts.groups):
            end = start + len(group)
            if end <= layer.num_first:
                for key, value in stacked.items():
                    state[f'{first}experts.groups.{index}.{key}'] = \
                        value[start:end]
            start = end
        # tasks that start as others do so when the layer is loaded
        later = tuple(f'routers.{task}.' for task in layer.starts)
        for key, value in layer.state_dict().items():
            if not key.startswith(later):
                state.setdefault(first + key, value)


def start_from_dense(trunk: nn.Module,
                     dense: Union[nn.Module, Mapping[str, Tensor]]) -> None:
    """Start a trunk with experts from its dense twin.

    With all routers uniform and as many experts a token as there are, it then
    gives what the twin gives.

    Args:
        trunk (nn.Module): A trunk that :func:`to_moe` or a class of ours
            made.
        dense (nn.Module | Mapping): The twin, or its state dict.

    Raises:
        ValueError: If tensors are missing.
    """
    if isinstance(dense, nn.Module):
        dense = dense.state_dict()
    missing, _ = trunk.load_state_dict(dense, strict=False)
    if missing:
        raise ValueError(
            f'The dense weights lack {len(missing)} tensors of this '
            f'{type(trunk).__name__}, such as {missing[:3]}; they are of '
            'another trunk.')

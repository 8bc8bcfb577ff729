# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The MLPs of a trunk, whatever library it is of, and experts in their place.

An MLP is two linear layers C -> H -> C with an activation between. Experts
take the place of the first layer, and nothing is done any more where the
others were. So identities, layer scales, stochastic depth and layouts of maps
stay what the trunk's own forward makes of them.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..patterns import match_names

#: How much wider than its tokens ``ffns='auto'`` takes an MLP to be at most:
#: the small networks that calculate position biases are far wider.
WIDEST = 8

_OTHERS = (' (an MLP that is gated, as SwiGLU, made of convolutions, or whose '
           'activation is a mere function has none)')
Leaf = Tuple[str, nn.Module]


class Moved(nn.Identity):
    """What is left in the place of a layer whose work experts do.

    Args:
        layer (nn.Module): That layer; its description is kept.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.was = description(layer)
        self.train(layer.training)

    def extra_repr(self) -> str:
        """What it was."""
        return 'was {0.__name__}({1})'.format(*self.was)


def description(layer: nn.Module) -> Tuple[type, str]:
    """Type and settings of a layer; what it was, where it has moved."""
    if isinstance(layer, Moved):
        return layer.was
    return type(layer), layer.extra_repr()


@dataclass(frozen=True)
class Ffn:
    """An MLP inside a trunk.

    Attributes:
        first (str): Name of the linear layer C -> H.
        second (str): Name of the linear layer H -> C.
        inner (tuple[str]): Names of the layers on hidden units: the
            activation, and dropout if any.
    """
    first: str
    second: str
    inner: Tuple[str, ...]

    def put(self, trunk: nn.Module, experts: nn.Module) -> None:
        """Put experts in its place."""
        for name in (*self.inner, self.second):
            _put(trunk, name, Moved(trunk.get_submodule(name)))
        _put(trunk, self.first, experts)

    def activation(self, trunk: nn.Module) -> nn.Module:
        """What experts do to hidden units: this MLP's own layers."""
        layers = [trunk.get_submodule(name) for name in self.inner]
        layers = [m for m in layers if not (_drops(m) and m.p == 0)]
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _put(trunk: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition('.')
    setattr(trunk.get_submodule(parent), leaf, module)


def find_ffns(trunk: nn.Module,
              ffns: Union[str, Sequence[str]] = 'auto') -> List[Ffn]:
    """The MLPs of a trunk.

    Args:
        trunk (nn.Module): The trunk.
        ffns (str | Sequence[str]): Patterns over submodule names: regular
            expressions of which one matches the full name of a module with an
            MLP in it. ``'auto'`` takes all MLPs that are as wide as their
            tokens, and up to :data:`WIDEST` times. Defaults to ``'auto'``.

    Raises:
        ValueError: If there are none, or one cannot become experts; names it.
    """
    kind = type(trunk).__name__
    leaves = list(_leaves(trunk))
    every = list(_pairs(leaves))
    if ffns == 'auto':
        chosen = [(a, b) for a, b in every if _usual(trunk, a)]
        if not chosen:
            raise ValueError(
                f'{kind} has no MLP that can become experts: no linear layers '
                f'C -> H -> C with an activation module between{_OTHERS}; '
                'name modules that have in `ffns`, or take another trunk.')
    else:
        patterns = [ffns] if isinstance(ffns, str) else ffns
        if not patterns or not all(patterns):
            raise ValueError(
                f'`ffns` is {ffns!r}, so no MLP of the {kind} would become '
                "experts; give patterns over its names, or 'auto'.")
        names = match_names(trunk, '|'.join(f'(?:{p})' for p in patterns),
                            'FFN')
        chosen = [_inside(trunk, name, every) for name in names]
    found = [_checked(trunk, leaves, a, b) for a, b in chosen]
    return list(dict.fromkeys(found))


def _leaves(module: nn.Module, prefix: str = '') -> Iterator[Leaf]:
    """Layers that are none of others' parts, in the trunk's order.

    Activations may have parts, and layers with parts parameters of their own.
    """
    for name, part in module.named_children():
        name = f'{prefix}{name}'
        whole = is_elementwise(part) or not any(True for _ in part.children())
        if whole or any(True for _ in part.parameters(recurse=False)):
            yield name, part
        if not whole:
            yield from _leaves(part, f'{name}.')


def _usual(trunk: nn.Module, first: str) -> bool:
    layer = trunk.get_submodule(first)
    return 1 <= layer.out_features / layer.in_features <= WIDEST


def _pairs(leaves: List[Leaf]) -> Iterator[Tuple[str, str]]:
    """Names of linear layers that follow each other as those of an MLP do."""
    linear = [(i, *leaf) for i, leaf in enumerate(leaves)
              if isinstance(leaf[1], nn.Linear)]
    for (i, first, a), (j, second, b) in zip(linear, linear[1:]):
        if (a.in_features, a.out_features) != (b.out_features, b.in_features):
            continue
        if _activations(leaves, i, j):
            yield first, second


def _activations(leaves: List[Leaf], i: int, j: int) -> List[str]:
    """The activations of two linear layers.

    Most lie between them. Some libraries list them before, beside the layers.
    """
    between = [leaf for leaf in leaves[i + 1:j] if not _is_nothing(leaf[1])]
    found = [name for name, module in between if is_elementwise(module)]
    if between or found:
        return found
    beside = _common(leaves[i][0], leaves[j][0])
    found = [
        name for name, module in leaves
        if name.startswith(beside) and is_elementwise(module)
    ]
    return found if len(found) == 1 else []


def _inside(trunk: nn.Module, name: str,
            every: List[Tuple[str, str]]) -> Tuple[str, str]:
    """The one pair of linear layers in a module.

    Raises:
        ValueError: If it has none, or several.
    """
    found = [(a, b) for a, b in every
             if a.startswith(f'{name}.') and b.startswith(f'{name}.')]
    kind = type(trunk.get_submodule(name)).__name__
    if len(found) > 1:
        raise ValueError(f"'{name}' ({kind}) holds {len(found)} MLPs; let "
                         f'`ffns` name each of them, such as '
                         f"'{_common(*found[0])[:-1]}'.")
    if not found:
        shapes = ', '.join(
            f'{m.in_features} -> {m.out_features}'
            for m in trunk.get_submodule(name).modules()
            if isinstance(m, nn.Linear)) or 'none'
        raise ValueError(
            f"'{name}' ({kind}) cannot become experts: it needs two linear "
            'layers C -> H -> C with an activation module between, and its '
            f'linear layers are {shapes}{_OTHERS}; name others in `ffns`, or '
            'take another trunk.')
    return found[0]


def _checked(trunk: nn.Module, leaves: List[Leaf], first: str,
             second: str) -> Ffn:
    """An MLP whose hidden units can be cut into those of experts.

    Raises:
        ValueError: If other layers work on them.
    """
    names = [name for name, _ in leaves]
    i, j = names.index(first), names.index(second)
    layer = leaves[i][1]
    dims, hidden = layer.in_features, layer.out_features
    acts = _activations(leaves, i, j)
    inner = [n for n, m in leaves[i + 1:j] if n in acts or _drops(m)]
    between = {*names[i + 1:j]}.difference(inner)
    for name, module in leaves:
        if name in (first, second) or _is_nothing(module):
            continue
        works = name in between or (
            name.startswith(_common(first, second)) and hidden != dims
            and any(hidden in p.shape for p in module.parameters()))
        if works:
            raise ValueError(
                f"The MLP of '{first}' and '{second}' cannot become experts: "
                f"'{name}' ({type(module).__name__}) works on its hidden "
                'units, too, and would need all of them; name others in '
                '`ffns`, or take another trunk.')
    return Ffn(first, second, tuple(dict.fromkeys([*acts, *inner])))


def _common(first: str, second: str) -> str:
    """The name, with a dot, of the module that two submodules share."""
    parts = []
    for a, b in zip(first.split('.'), second.split('.')):
        if a != b:
            break
        parts.append(a)
    return ''.join(f'{part}.' for part in parts)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout)


def _is_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or _drops(module)


@torch.no_grad()
def is_elementwise(module: nn.Module) -> bool:
    """Whether a layer is an activation: it changes values one by one."""
    if _is_nothing(module) or any(True for _ in module.parameters()):
        return False
    x = torch.linspace(-2, 2, 16, device='cpu').reshape(2, 8)
    y = _tried(module, x)
    half = _tried(module, x[:, :4])
    return (y is not None and half is not None and y.shape == x.shape
            and not torch.equal(y, x) and torch.equal(y[:, :4], half))


def _tried(module: nn.Module, x: Tensor) -> Optional[Tensor]:
    try:
        y = deepcopy(module).eval()(x.clone())
    except Exception:  # whatever a layer for other inputs says
        return None
    return y if isinstance(y, Tensor) else None

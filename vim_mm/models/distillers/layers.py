# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Outputs of a network's layers by name.

The libraries call the forward of many heads directly, past torch's hooks, so
heads are listened to where their forward stands; all else by hooks.
"""

import re
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..layouts import as_levels, channels_of
from ..recorder import Call, Seen, tapping
from .heads import LOGITS, Layer, are_alone, heads_of, logits_of, needs_more

_NAME = re.compile(r'(\w+(?:\.\w+)*)((?:\[-?\d+\])*)')

#: one output, or one for each level
Levels = Tuple[Tensor, ...]


class LayerReader:
    """Reads named layers of a network, or of copies of it.

    Args:
        network (BaseModel): The network.
        names (Iterable[str]): The layers: paths of submodules such as
            ``backbone.layer4``, with an index where one gives a tuple,
            ``backbone[3]``; or ``logits``.
        who (str): What the network is, for messages.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(self, network: BaseModel, names: Iterable[str],
                 who: str) -> None:
        self.who = who
        self.layers = {name: self._find(network, name) for name in names}
        paths = {layer.path for layer in self.layers.values()}
        heads = heads_of(network)
        self._hooked = [path for path in paths if path not in heads]
        # heads behind the last that is named have nothing to give
        self._heads = [
            path for path in heads
            if any(named == path or named.startswith(f'{path}.')
                   for named in paths)
        ]
        if any(path.startswith('decode_head.') for path in self._heads):
            # those of a cascade read what the ones before gave
            self._heads = [
                path for path in heads
                if path in self._heads or path.startswith('decode_head.')
            ]

    def _find(self, network: BaseModel, name: str) -> Layer:
        if name == LOGITS:
            return logits_of(network, self.who).layer
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise ValueError(
                f'{name!r} names no layer; write the path of a submodule, '
                "with an index where it gives a tuple, as in 'backbone[3]'.")
        path, index = match.groups()
        try:
            network.get_submodule(path)
        except AttributeError:
            parts = [LOGITS, *(key for key, _ in network.named_children())]
            raise ValueError(
                f"The {self.who} {type(network).__name__} has no layer "
                f"'{path}'; names begin with one of {parts}.") from None
        for key, head in heads_of(network).items():
            if f'{path}.'.startswith(f'{key}.') and needs_more(head):
                raise ValueError(
                    f"The {self.who}'s layer '{name}' belongs to a "
                    f'{type(head).__name__}, which reads more than features; '
                    'name one of its `backbone` or `neck`.')
        return Layer(path, tuple(map(int, re.findall(r'-?\d+', index))))

    def run(self, network: BaseModel, inputs: Tensor) -> Dict[str, Levels]:
        """The layers' outputs in a pass without what lies behind them.

        Args:
            network (BaseModel): The network.
            inputs (Tensor): Its inputs, (B, 3, H, W).

        Raises:
            ValueError: See :meth:`read`.
        """
        with self.listening(network) as seen:
            self.forward(network, inputs)
        return self.read(seen)

    def forward(self, network: BaseModel, inputs: Tensor) -> None:
        """A pass of a network up to the layers."""
        if not hasattr(network, 'backbone'):
            network(inputs)
            return
        features = network.extract_feat(inputs)
        before = ()
        for path in self._heads:
            output = network.get_submodule(path).forward(features, *before)
            if path.startswith('decode_head.'):
                before = (output, )

    @contextmanager
    def listening(self,
                  network: BaseModel,
                  rows: Optional[Tensor] = None) -> Iterator[Seen]:
        """Within this context the outputs of the layers are kept.

        Args:
            network (BaseModel): The network.
            rows (Tensor, optional): The images of the batch that the network
                computes its own losses of, all when None. What is kept is of
                all images where heads read features alone. Defaults to None.

        Yields:
            dict: Calls by path, see :func:`tapping`.
        """
        heads = heads_of(network)
        at_heads, ahead = rows, None
        if rows is not None and not are_alone(network, heads):
            at_heads, ahead = None, rows
        modules = {path: network.get_submodule(path) for path in self._hooked}
        with ExitStack() as stack:
            seen = stack.enter_context(tapping(modules))
            if ahead is not None:
                stack.enter_context(_watch(network, 'extract_feat', [], ahead))
            for path, head in heads.items():
                seen[path] = []
                stack.enter_context(
                    _watch(head, 'forward', seen[path], at_heads))
            yield seen

    def read(self, seen: Seen) -> Dict[str, Levels]:
        """The layers' outputs by name, one for each level.

        Args:
            seen (dict): What :meth:`listening` gave.

        Raises:
            ValueError: If a layer did not run, or gave something else than
                vectors, tokens or maps.
        """
        return {
            name: self._levels(name, seen[layer.path], layer.index)
            for name, layer in self.layers.items()
        }

    def _levels(self, name: str, calls: List[Call],
                index: Tuple[int, ...]) -> Levels:
        what = f"The {self.who}'s layer '{name}'"
        if not calls:
            raise ValueError(
                f'{what} does not run in a pass, or not as a module; name '
                'one that does, such as the part around it.')
        # one that reads every level in turn gives one output for each
        output = calls[0].output if len(calls) == 1 else tuple(
            call.output for call in calls)
        for entry in index:
            many = len(output) if isinstance(output, (list, tuple)) else 0
            if not -many <= entry < many:
                raise ValueError(f'{what} gives {_describe(output)}, which '
                                 f'has no entry [{entry}].')
            output = output[entry]
        try:
            levels = as_levels(output)
            channels_of(levels)
        except (TypeError, ValueError):
            raise ValueError(
                f'{what} gives {_describe(output)}; name one that gives '
                'vectors, tokens or maps, or an entry by its index, as in '
                "'backbone[3]'.") from None
        return levels


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f'a tensor of shape {tuple(output.shape)}'
    if isinstance(output, (list, tuple)):
        return f'{len(output)} outputs, [{", ".join(map(_describe, output))}]'
    return f'a {type(output).__name__}'


@contextmanager
def _watch(owner: nn.Module, name: str, calls: List[Call],
           rows: Optional[Tensor]) -> Iterator[None]:
    """Within this context a method's outputs are kept, and cut to rows."""
    original, own = getattr(owner, name), vars(owner).get(name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        calls.append(Call(output))
        return output if rows is None else tree_map(cut, output)

    def cut(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) else value

    setattr(owner, name, watched)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import re
from copy import deepcopy
from typing import (Any, Dict, Hashable, List, Mapping, MutableMapping,
                    Optional, Sequence, Tuple)

import torch
from torch import Tensor, nn

from vim_mm.utils.arguments import refuse_init_cfg
from vim_mm.utils.messages import short
from vim_mm.utils.meta import check_shapes, shapes
from .base_adapter import BaseAdapter, Grid
from .building import Dims, build_adapter, shapes_of
from .group import Group

#: by group of modules, what its rungs hand from level to level
States = MutableMapping[Hashable, Tuple[Tensor, Grid]]


def _key(slot: str) -> str:
    # a ModuleDict key may not hold dots, and attribute names hold no dashes
    return slot.replace('.', '-')


def _learns(part: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad
                                           for p in part.parameters())


class AdapterBank(nn.Module):
    """K modules beside one trunk, evaluated as one wide adapter per slot.

    Parameters are kept per module, ``members.<module>.<slot>.<param>``, so
    that a module can be added, exported or frozen without touching another.
    Modules may occupy different slots and be of different kinds; those that
    share a slot and a :attr:`BaseAdapter.wide_key` are evaluated together, of
    those beside the trunk only ladders over the same levels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleDict()
        self._cfgs: Dict[str, dict] = {}
        self._dims: Dict[str, Dict[str, Dims]] = {}
        #: counts what may change how modules run
        self.changes = 0
        #: counts calls of :meth:`train`, before which weights may have been
        #: exchanged through ``.data``, where torch does not count
        self.modes = 0
        self._learned: List[bool] = []
        self._register_load_state_dict_pre_hook(self._check_shapes)

    def _check_shapes(self, state_dict: dict, prefix: str, *_) -> None:
        self.changes += 1
        # mmengine would only log it, and load what fits of the module
        for key, own in self.state_dict(prefix=prefix).items():
            if key in state_dict and state_dict[key].shape != own.shape:
                name = key[len(prefix):].split('.')[1]
                raise ValueError(
                    f"Module '{name}' of the checkpoint is not the one of "
                    f'this model: {key} has shape '
                    f'{tuple(state_dict[key].shape)} there and '
                    f'{tuple(own.shape)} here; give the zoo and the adapter '
                    'it was trained with.')

    @property
    def names(self) -> List[str]:
        """Module names in the order in which they joined."""
        return list(self._dims)

    def adapter_cfg(self, name: str) -> dict:
        """The adapter config of a module, ``type`` included, a copy."""
        return deepcopy(self._cfgs[name])

    def function_settings(self) -> Dict[str, dict]:
        """What changes the function of modules, beside their tensors."""
        return {
            f'members.{name}': next(iter(adapters.values())).said_settings()
            for name, adapters in self.members.items()
        }

    def slots_of(self, name: str) -> List[str]:
        """The slots that a module occupies, as its card lists them."""
        return list(self._dims[name])

    def dims_of(self, name: str) -> Dict[str, Dims]:
        """Widths of the slots that a module occupies, as for :meth:`add`."""
        return dict(self._dims[name])

    def adapter(self, name: str, slot: str) -> BaseAdapter:
        """The adapter of a module in one slot."""
        return self.members[name][_key(slot)]

    def is_beside(self, name: str) -> bool:
        """Whether a module reads the trunk's outputs, from beside it."""
        return any(a.beside for a in self.members[name].values())

    def adds_nothing(self, name: str) -> bool:
        """Whether a module adds zeros in every slot, as a fresh one does."""
        return all(a.adds_nothing for a in self.members[name].values())

    def in_slot(self, slot: str, names: Sequence[str]) -> List[BaseAdapter]:
        """The adapters that the named modules have in a slot."""
        return [
            self.adapter(name, slot) for name in names
            if slot in self._dims[name]
        ]

    def add(self,
            name: str,
            adapter_cfg: dict,
            dims: Mapping[str, Dims],
            tensors: Optional[Mapping[str, Tensor]] = None,
            trainable: bool = True) -> None:
        """Add a module; the ones already here are not touched.

        Args:
            name (str): Name of the module: letters, digits, '_' and '-',
                as in a zoo.
            adapter_cfg (dict): Config of its adapters, without ``dims``.
            dims (Mapping[str, int | Sequence[int]]): Width of each slot it
                occupies, or the widths of its input and output.
            tensors (Mapping[str, Tensor], optional): Its learned weights,
                ``'<slot>.<param>'`` as from :meth:`export`. Fresh when None.
            trainable (bool): Whether its parameters require gradients.
                Defaults to True.

        Raises:
            ValueError: If the name is taken or not allowed, or if the tensors
                do not fit the config.
        """
        if isinstance(name, str) and name in self._dims:
            raise ValueError(f"The bank already holds a module '{name}'; "
                             'give the new one another name.')
        if not isinstance(name, str) or not re.fullmatch(
                r'[A-Za-z0-9][\w-]{0,99}', name,
                re.ASCII) or hasattr(self.members, name):
            raise ValueError(f"{name!r} cannot name a module; start with a "
                             "letter or digit, use letters, digits, '_' and "
                             "'-', 100 at most, and no torch method name.")
        if tensors is not None:
            self._check_tensors(name, adapter_cfg, dims, tensors)
        adapters = nn.ModuleDict({
            _key(slot): build_adapter(adapter_cfg, width)
            for slot, width in dims.items()
        })
        where = 'model.backbone.adapter' if tensors is None else 'adapter'
        for adapter in adapters.values():
            # cards of 0.1.0 may have one, which must not name a file
            if tensors is None or _names_file(adapter.init_cfg):
                refuse_init_cfg(adapter, where)
        if tensors is not None:
            state = {}
            for full_name, tensor in tensors.items():
                slot, param = self._split(full_name, dims)
                state[f'{_key(slot)}.{param}'] = tensor
            adapters.load_state_dict(state)
        adapters.requires_grad_(trainable)
        self.members[name] = adapters
        self._cfgs[name] = deepcopy(dict(adapter_cfg))
        self._dims[name] = dict(dims)
        self.changes += 1
        self.train(self.training)

    def _check_tensors(self, name: str, adapter_cfg: dict,
                       dims: Mapping[str, Dims],
                       tensors: Mapping[str, Tensor]) -> None:
        """Refuse weights of another config before any memory is taken.

        Raises:
            ValueError: If they do not fit it.
        """
        for full_name in tensors:
            self._split(full_name, dims)
        try:
            check_shapes(shapes_of(adapter_cfg, dims), shapes(tensors))
        except ValueError as error:
            raise ValueError(
                f"The weights of module '{name}' do not fit its adapter "
                f'config {short(dict(adapter_cfg))}: {error}.') from error

    @staticmethod
    def _split(full_name: str, slots: Mapping[str, Dims]) -> Sequence[str]:
        for slot in slots:
            if full_name.startswith(slot + '.'):
                return slot, full_name[len(slot) + 1:]
        raise ValueError(f"Tensor '{full_name}' belongs to no slot of its "
                         'module; the file does not fit its card.')

    def remove(self, name: str) -> None:
        """Remove a module.

        Raises:
            ValueError: If there is no module of that name.
        """
        if name not in self._dims:
            raise ValueError(f"The bank holds no module '{name}'; it holds "
                             f'{self.names}.')
        del self.members[name], self._cfgs[name], self._dims[name]
        self.changes += 1

    def export(self, name: str) -> Dict[str, Tensor]:
        """The learned tensors of one module, on CPU, nothing else.

        Returns:
            dict[str, Tensor]: ``'<slot>.<param>'`` to a contiguous copy.
        """
        tensors = {}
        for slot in self._dims[name]:
            for param, value in self.members[name][_key(
                    slot)].state_dict().items():
                tensors[f'{slot}.{param}'] = value.detach().cpu().clone(
                    memory_format=torch.contiguous_format)
        return tensors

    def train(self, mode: bool = True) -> 'AdapterBank':
        """Frozen modules stay in eval mode: no dropout in what is fixed."""
        super().train(mode)
        self.modes += 1
        learns = [p.requires_grad for p in self.parameters()]
        # nothing changes from epoch to epoch, and no graph is compiled anew
        self.changes += learns != self._learned
        self._learned = learns
        for adapters in self.members.values():
            if not any(p.requires_grad for p in adapters.parameters()):
                adapters.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> 'AdapterBank':
        """See :meth:`torch.nn.Module.requires_grad_`."""
        self.changes += 1
        return super().requires_grad_(requires_grad)

    def _apply(self, *args, **kwargs) -> 'AdapterBank':
        self.changes += 1
        return super()._apply(*args, **kwargs)

    def forward(self,
                slot: str,
                x: Tensor,
                grid: Optional[Grid],
                names: Sequence[str],
                gates: Optional[Tensor],
                merge: bool = False,
                states: Optional[States] = None) -> Optional[Tensor]:
        """The gated sum of the named modules in one slot.

        Args:
            slot (str): Name of the slot.
            x (Tensor): Tokens the slot reads, (B, E + H * W, dims).
            grid (tuple[int, int], optional): H and W, in patches; None where
                no module needs it.
            names (Sequence[str]): The modules that take part.
            gates (Tensor, optional): One weight per name, (K, ), or a row of
                them for each image, (B, K); None weighs each by one.
            merge (bool): Apply the weights to parameters instead of outputs.
                Defaults to False.
            states (MutableMapping, optional): For modules beside the trunk:
                what their rungs hand on from one level to the next. Empty at
                the first level; read and filled in.

        Returns:
            Tensor or None: The delta, or None when no module is in the slot.

        Raises:
            ValueError: If modules of different kinds, or that occupy
                different slots, are to be merged.
        """
        total = None
        for group in self.groups(slot, names, merge):
            own = group.mine(gates)
            if states is None:
                delta = group(x, own, grid)
            else:
                delta, states[group.key] = group(x, own, grid,
                                                 states.get(group.key))
            total = delta if total is None else total + delta
        return total

    def groups(self,
               slot: str,
               names: Sequence[str],
               merge: bool = False) -> List[Group]:
        """The adapters of a slot that run together.

        Args:
            slot (str): Name of the slot.
            names (Sequence[str]): The modules that take part.
            merge (bool): Whether to merge parameters instead of adding
                outputs. Defaults to False.

        Raises:
            ValueError: If modules of different kinds, or that occupy
                different slots, are to be merged.
        """
        alike: Dict[Hashable, Dict[int, BaseAdapter]] = {}
        for index, name in enumerate(names):
            if slot in self._dims[name]:
                adapter = self.adapter(name, slot)
                # what learns is not packed, so it is kept apart; where it is
                # merged with the rest, none of both is packed
                owner = self.members[name] if adapter.beside else adapter
                key = adapter.wide_key, not merge and _learns(owner)
                if adapter.beside:  # each ladder hands on a state of its own
                    key = (*key, *self._dims[name])
                alike.setdefault(key, {})[index] = adapter
        sizes = [len(members) for members in alike.values()]
        if merge and sizes and sizes != [len(names)]:
            raise ValueError(
                f'The modules {list(names)} differ in kind, width or the '
                f"slots they occupy, so in slot '{slot}' they have no common "
                'parameters to merge; fuse their outputs (EnsMoE) instead.')
        return [
            Group(list(members.values()),
                  None if len(members) == len(names) else list(members),
                  merge, key) for key, members in alike.items()
        ]


def _names_file(init_cfg: Any) -> bool:
    """Whether weights are to be read from somewhere else."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any('checkpoint' in cfg for cfg in cfgs if cfg)

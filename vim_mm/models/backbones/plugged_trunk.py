# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, List, Mapping, Optional, Sequence, Set

from vim_mm.utils.arguments import check_is_config
from vim_mm.zoo import ModuleCard, Zoo, ZooError
from vim_mm.zoo.parts import part_of
from ..adapters import AdapterBank, adapter_class
from ..moe.selection import check_selection
from .slots import match_slots
from .slotted_trunk import SlottedTrunk

#: The adapters of a new module, where nothing else is said.
DEFAULT_ADAPTER = dict(type='ConvPass', hidden_dims=8)


class PluggedTrunk(SlottedTrunk):
    """A frozen trunk and the modules that are plugged into its slots.

    Arguments are those of :class:`SlottedTrunk`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.bank = AdapterBank()
        self.new_module: Optional[str] = None
        self._tuned: List[str] = []
        #: names of modules that loaded ones were baked from
        self.baked_from: Set[str] = set()
        #: by module, what it was made of, for cards
        self.made_of: Dict[str, List[dict]] = {}
        #: by loaded module, how the images were normalised, if its card says
        self.normalizations: Dict[str, dict] = {}

    def _plan_slots(self, zoo: Optional[str], modules: Sequence[str],
                    adapter: Optional[dict]) -> None:
        """Find all slots anyone asks for by one probe, in trunk order."""
        names: List[str] = []
        if self._pattern is not None:
            names += match_slots(self.trunk, self._pattern)
        if adapter is not None:
            kind, pattern, _ = split_adapter(adapter)
            names += self._slots_for(kind, pattern)
        for module in modules if zoo is not None else ():
            names += Zoo(zoo).card(module).slots
        self._find_slots(names or match_slots(self.trunk))

    def add(self,
            name: str,
            adapter: Optional[dict] = None,
            slots: Optional[str] = None) -> None:
        """Add a fresh module that learns; it changes no output yet.

        Add modules before the optimizer and a data-parallel wrapper are
        built. A fusion does not weigh the module until a task knows it, see
        :meth:`ViMBackbone.add_task`.

        Args:
            name (str): Name of the module.
            adapter (dict, optional): Config of its adapters. Defaults to
                None, :data:`DEFAULT_ADAPTER`.
            slots (str, optional): Pattern over the names of the submodules,
                or of outputs, that it occupies. By default ``slots`` of
                ``adapter``, then those of the backbone, then what its kind
                takes of the trunk's class.

        Raises:
            ValueError: If the name is taken or not allowed, or the adapter
                does not fit the slots; nothing has been added then.
        """
        kind, pattern, cfg = split_adapter(
            DEFAULT_ADAPTER if adapter is None else adapter)
        names = self._slots_for(kind, slots or pattern)
        self._find_slots(names)
        # submodules that the trunk never calls are no slots
        specs = [self.slots[name] for name in names if name in self.slots]
        for spec in specs:
            self._check_kind(kind, spec.name)
        if kind.beside:
            self._check_levels(name, cfg.setdefault('levels', self.levels))
        dims = {spec.name: spec.widths for spec in specs if spec.is_read}
        if not dims:
            raise ValueError(
                f"No output of the trunk depends on any slot of '{name}', so "
                'it could not learn; widen its `slots` pattern.')
        self.bank.add(name, cfg, dims)
        self.bank.to(self.device)

    def remove(self, name: str) -> None:
        """Remove a module; the others and the trunk stay as they are.

        Args:
            name (str): Its name.

        Raises:
            ValueError: If there is no module of that name.
        """
        self.bank.remove(name)
        self.made_of.pop(name, None)
        self.normalizations.pop(name, None)
        if name in self._tuned:
            self._tuned.remove(name)
        if name == self.new_module:
            self.new_module = None

    def load_modules(self,
                     zoo: Optional[str],
                     modules: Sequence[str],
                     trainable: bool = False,
                     tasks: Sequence[str] = ()) -> None:
        """Load modules from a zoo into the bank.

        Args:
            zoo (str, optional): Directory of the zoo.
            modules (Sequence[str]): Their names.
            trainable (bool): Whether they learn in the slots that an output
                of the trunk depends on. Defaults to False.
            tasks (Sequence[str]): Tasks that will choose a router of the
                trunk, beside the one that is selected. Defaults to none.

        Raises:
            ValueError: If modules are named without a zoo.
            ZooError: If a module is unknown, damaged or of another trunk, or
                was trained with other routers of it.
        """
        if modules and zoo is None:
            raise ValueError(f'The modules {list(modules)} are to be loaded, '
                             'but no `zoo` is given; set '
                             '`model.backbone.zoo` to its directory.')
        for name in modules:
            card, tensors = Zoo(zoo).load(name)
            Zoo(zoo).check_trunk(card, self.trunk)
            self.baked_from.update(_origin(card))
            self._find_slots(card.slots)
            self._check_levels(name, card.adapter.get('levels'))
            widths = {n: spec.widths for n, spec in self.slots.items()}
            Zoo(zoo).check_trunk(card, self.trunk, widths)
            check_selection(card, self.trunk, tasks)
            dims = {slot: card.dims[slot] for slot in card.slots}
            try:
                self.bank.add(name, card.adapter, dims, tensors, trainable)
            except ValueError as error:
                raise ZooError(f'Module {name!r} cannot be used: {error}'
                               ) from error
            self.made_of[name] = part_of(card)
            normalization = card.trunk.get('normalization')
            if isinstance(normalization, Mapping):
                self.normalizations[name] = dict(normalization)
            if trainable:
                self._tuned.append(name)
                self._tune(name, True)
        self.bank.to(self.device)

    def _tune(self, name: str, learns: bool) -> None:
        """Let a loaded module learn, where an output depends on it."""
        for slot in self.bank.slots_of(name):
            self.bank.adapter(name, slot).requires_grad_(
                learns and self.slots[slot].is_read)
        self.changes += 1
        self.bank.train(self.training)

    def _occupied(self, names: Sequence[str]) -> Dict[str, Dict[str, int]]:
        """By module, its slots and the width of what each reads."""
        return {
            name: {
                slot: self.slots[slot].in_dims
                for slot in self.bank.slots_of(name)
            }
            for name in names
        }

    def _check_known(self, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(self.bank.names))
        if unknown:
            raise ValueError(f'The bank holds no modules {unknown}; it holds '
                             f'{self.bank.names}.')

    def _check_place(self, names: Sequence[str]) -> None:
        if len({self.bank.is_beside(name) for name in names}) > 1:
            raise ValueError(
                f'Of the modules {list(names)} some sit in the trunk and some '
                'beside it, which run in passes of their own; leave out '
                '`fusion` and weigh their streams with ViMFusionNeck.')


def _origin(card: ModuleCard) -> Set[str]:
    """Names of the modules that a module was baked from."""
    origin = card.training.get('baked_from')
    weights = origin.get('weights') if isinstance(origin, Mapping) else None
    names: Set[str] = set()
    for each in weights.values() if isinstance(weights, Mapping) else ():
        if isinstance(each, (Mapping, list)):
            names.update(name for name in each if isinstance(name, str))
    return names


def split_adapter(adapter: dict) -> tuple:
    """Take apart what a new module is given.

    Args:
        adapter (dict): Config of its adapters, which may hold ``slots``.

    Returns:
        tuple: The class of the adapters, the pattern of their slots or None,
        and their config, whose type is a name as on a card.

    Raises:
        ValueError: If it is no config, or no adapter's.
    """
    check_is_config(adapter, 'model.backbone.adapter')
    cfg = dict(adapter)
    if isinstance(cfg.get('type'), type):
        cfg['type'] = cfg['type'].__name__
    pattern = cfg.pop('slots', None)
    return adapter_class(cfg), pattern, cfg

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from functools import partial
from typing import Any, Callable, Dict, Optional, Set, Union

import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.registry import FUNCTIONS
from torch import nn
from torch.distributed.fsdp import (FullOptimStateDictConfig,
                                    FullStateDictConfig,
                                    FullyShardedDataParallel)

from vim_mm.models.adapters import AdapterBank
from vim_mm.models.fusion import BaseFusion
from vim_mm.models.moe.moe_layer import MoELayer
from vim_mm.registry import STRATEGIES
from vim_mm.utils.messages import short
from vim_mm.utils.state_dicts import plain_name

#: Parts that compute with tensors of those inside of them, so FSDP would give
#: them a piece of each. The first two are not called themselves, either.
NEVER, AS_ONE = (AdapterBank, BaseFusion), (MoELayer, )
#: What mmengine takes for checkpoints of whole tensors.
FULL = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(
        type='FullStateDictConfig', rank0_only=True, offload_to_cpu=True),
    optim_state_dict_config=dict(
        type='FullOptimStateDictConfig',
        rank0_only=True,
        offload_to_cpu=True))


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """Each process holds a part of every tensor.

    mmengine's, which here also runs on CPUs, saves before every tensor has
    been trained and models that leave tensors out (a frozen trunk, what helps
    a student), tests them, and goes on from its checkpoints: torch 2.1 has
    changed the order of what it takes to load an optimizer.

    Args:
        model_wrapper (dict, optional): See mmengine's. Parameters stay apart
            (``use_orig_params``), unless it says otherwise. Defaults to None.
        state_dict_cfg (str | dict): See mmengine's, of which that of whole
            tensors is taken. Defaults to 'full'.
        **kwargs: See mmengine's.

    Raises:
        ValueError: If each process would write its own part: torch writes
            these as pickles of its classes, which no run reads again.
    """

    #: Whether outside of a pass a process sees a part of each tensor only.
    divides = True

    def __init__(self,
                 *,
                 model_wrapper: Optional[dict] = None,
                 state_dict_cfg: Union[str, dict] = 'full',
                 **kwargs: Any) -> None:
        given = {'full': FULL}.get(str(state_dict_cfg), state_dict_cfg)
        kind = given.get('state_dict_type') if isinstance(given, dict) else 0
        if getattr(kind, 'name', kind) != FULL['state_dict_type']:
            raise not_whole(state_dict_cfg)
        wrapper = dict(
            type='MMFullyShardedDataParallel', use_orig_params=True)
        if get_device() == 'cpu':
            wrapper.update(device_id='cpu')
        wrapper.update(model_wrapper or {})
        policy = wrapper.get('auto_wrap_policy')
        if isinstance(policy, (str, dict)):
            wrapper['auto_wrap_policy'] = partial(
                leave_whole, policy=built_policy(policy))
        super().__init__(
            model_wrapper=wrapper, state_dict_cfg={**FULL, **given}, **kwargs)
        if not isinstance(self.state_dict_config,
                          FullStateDictConfig) or not isinstance(
                              self.optim_state_dict_config,
                              FullOptimStateDictConfig):
            raise not_whole(state_dict_cfg)
        if get_device() == 'cpu':
            # what torch moves to where it is, it overwrites or frees: it
            # would gather one state of Adam over the other, and up to 2.7 at
            # least read weights whose memory is gone
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        #: By name, the tensors of a checkpoint, without memory.
        self.whole = {
            name: torch.empty_like(value, device='meta')
            for name, value in model.state_dict().items()
        }
        return super()._wrap_model(model)

    def model_state_dict(self) -> dict:
        """The weights, whole.

        What a model leaves out or renames, it does once FSDP has put all of
        its tensors together: FSDP looks for each of them.
        """
        held = []
        for name, part in self.model.named_modules():
            place = plain_name(name)
            prefix = f'{place}.' if place else ''
            for key, hook in list(part._state_dict_hooks.items()):
                if getattr(hook, '__module__', '').startswith('vim_mm.'):
                    held.append((part, prefix, key, hook))
                    del part._state_dict_hooks[key]
        try:
            state = super().model_state_dict()
        finally:
            for part, _, key, hook in held:
                part._state_dict_hooks[key] = hook
        for part, prefix, _, hook in reversed(held):  # from inside out
            hook(part, state, prefix, {})
        return state

    def optim_state_dict(self) -> dict:
        """The state of the optimizer.

        FSDP gathers that of whole blocks. Where an optimizer has none of a
        tensor, whose task never ran, others hold its place meanwhile.
        """
        state = self.optim_wrapper.state_dict()
        untrained = self._hold_places(state['state'])
        found = FullyShardedDataParallel.optim_state_dict(
            self.model, self.optim_wrapper, state)
        names = [
            name for group in found.get('param_groups', ())
            for name in group['params']
        ]
        for index in untrained if names else ():
            found['state'].pop(names[index], None)
        return found

    def _hold_places(self, state: Dict[int, dict]) -> Set[int]:
        """Fill in what an optimizer has not got of parameters, yet.

        Args:
            state (dict): By its number, what it has of each parameter that
                this process has a part of. Changed in place.

        Returns:
            set[int]: Numbers of those which are filled in by any process.
        """
        if not self.model._use_orig_params:
            return set()
        params = [
            param for group in self.optim_wrapper.param_groups
            for param in group['params']
        ]
        lacking = {
            index
            for index, param in enumerate(params)
            if index not in state and param.requires_grad and param.numel()
        }
        # a process may have parts of untrained tensors alone
        kinds = {
            name: value.dtype
            for each in state.values() for name, value in each.items()
            if isinstance(value, torch.Tensor) and value.dim()
        }
        found = all_gather_object((lacking, kinds))
        kinds = {name: kind for _, own in found for name, kind in own.items()}
        for index in lacking:
            state[index] = {
                name: torch.zeros_like(params[index], dtype=kind)
                for name, kind in kinds.items()
            }
        return set().union(*(own for own, _ in found))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the state of the optimizer.

        Args:
            state_dict (dict): As :meth:`optim_state_dict` gives it.
        """
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model,
                optim=self.optim_wrapper.optimizer,
                optim_state_dict=state_dict))


def built_policy(cfg: Union[str, dict]) -> Callable[..., bool]:
    """A policy of which parts FSDP takes apart, as mmengine builds it.

    Raises:
        ValueError: If there is no function of its name.
    """
    given = dict(type=cfg) if isinstance(cfg, str) else dict(cfg)
    kind = given.pop('type', None)
    if isinstance(kind, str):
        with FUNCTIONS.switch_scope_and_registry(None) as functions:
            kind = functions.get(kind)
    if kind is None:
        raise ValueError(
            '`strategy.model_wrapper.auto_wrap_policy` is '
            f'{short(cfg)}, which is no function; name one, such as '
            "'torch.distributed.fsdp.wrap.size_based_auto_wrap_policy'.")
    return partial(kind, **given)


def leave_whole(module: nn.Module, recurse: bool, nonwrapped_numel: int,
                policy: Callable[..., bool]) -> bool:
    """A policy that leaves parts of ours whole, whatever another one says.

    Args:
        module (nn.Module): The part in question.
        recurse (bool): Whether the question is if to look into it, and not
            if to wrap it.
        nonwrapped_numel (int): How many of its parameters are not wrapped.
        policy (Callable): The other policy.
    """
    if isinstance(module, (*NEVER, *(AS_ONE if recurse else ()))):
        return False
    return policy(
        module=module, recurse=recurse, nonwrapped_numel=nonwrapped_numel)


def not_whole(cfg: Any) -> ValueError:
    """What is wrong with checkpoints in parts."""
    return ValueError(
        f'`strategy.state_dict_cfg` is {short(cfg)}: each process would write '
        'a part of the checkpoint, which no run could go on with; set it to '
        "'full', for one file of whole tensors.")


def check_strategy(strategy: Any) -> None:
    """Refuse mmengine's own, whose runs could not be gone on with.

    Args:
        strategy: Of the run, if it has one.

    Raises:
        ValueError: If it is that.
    """
    if type(strategy) is _FSDPStrategy:
        raise ValueError(
            "`strategy.type` is mmengine's FSDPStrategy, which with this "
            'torch cannot load the state of its optimizer again; set it to '
            "'vim_mm.FSDPStrategy', and its `state_dict_cfg` to 'full'.")

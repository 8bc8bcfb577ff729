# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Dict, Optional, Set

import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from torch.distributed.fsdp import FullyShardedDataParallel

from vim_mm.registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """Each process holds a part of every tensor.

    mmengine's, which here also runs on CPUs, saves before every tensor has
    been trained, and goes on from its checkpoints: torch 2.1 has changed the
    order of what it takes to load an optimizer.

    Args:
        model_wrapper (dict, optional): See mmengine's. Parameters stay apart
            (``use_orig_params``), unless it says otherwise. Defaults to None.
        **kwargs: See mmengine's.
    """

    def __init__(self,
                 *,
                 model_wrapper: Optional[dict] = None,
                 **kwargs: Any) -> None:
        wrapper = dict(
            type='MMFullyShardedDataParallel', use_orig_params=True)
        if get_device() == 'cpu':
            wrapper.update(device_id='cpu')
        wrapper.update(model_wrapper or {})
        super().__init__(model_wrapper=wrapper, **kwargs)
        if get_device() == 'cpu':
            # torch would gather one state of Adam over the other, which it
            # has put aside by moving it to where it is
            self.optim_state_dict_config.offload_to_cpu = False

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

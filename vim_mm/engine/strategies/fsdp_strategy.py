# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Optional

from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.device import get_device
from torch.distributed.fsdp import FullyShardedDataParallel

from vim_mm.registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """Each process holds a part of every tensor.

    mmengine's, which here also runs on CPUs and goes on from its checkpoints:
    torch 2.1 has changed the order of what it takes to load an optimizer.

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

    def optim_state_dict(self) -> dict:
        """The state of the optimizer.

        Raises:
            ValueError: If it has none of a tensor, whose task never ran.
        """
        try:
            return super().optim_state_dict()
        except RuntimeError as error:
            name, found, _ = str(error).partition(
                ' is not in the optimizer state.')
            if not found:
                raise
            raise ValueError(
                f'No step has trained `{name}` yet, and FSDP saves no '
                'optimizer before all tasks have run: let the first '
                'checkpoint be later; tasks that never run need `learn_tasks` '
                'without them.') from error

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

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os.path as osp
from contextlib import suppress
from importlib import import_module
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from mmengine._strategy import DeepSpeedStrategy as _DeepSpeedStrategy
from mmengine._strategy import deepspeed as mmengine_deepspeed
from mmengine.config import ConfigDict
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from vim_mm.registry import STRATEGIES
from vim_mm.utils.checkpoint import CheckpointError, load_pickle
from vim_mm.utils.config import type_name

#: Optimizers of DeepSpeed by module; which of them there are differs.
_OPTIMIZERS = {
    'ops.adam': ('DeepSpeedCPUAdam', 'FusedAdam'),
    'ops.lamb': ('FusedLamb', ),
    'runtime.fp16.onebit': ('OnebitAdam', 'OnebitLamb', 'ZeroOneAdam')
}


@STRATEGIES.register_module()
class DeepSpeedStrategy(_DeepSpeedStrategy):
    """ZeRO: each process holds a part of optimizer, gradients and weights.

    mmengine's, which here also runs with DeepSpeed >= 0.19.7, on CPUs and for
    several tasks, takes ordinary optimizer wrappers, clips gradients only
    where it is asked to, starts from ordinary checkpoints, lets hooks see
    checkpoints, and tests and validates.

    Args:
        config (dict | str, optional): See mmengine's. Defaults to None.
        **kwargs: See mmengine's.

    Raises:
        ValueError: If there is no launcher.
    """

    def __init__(self, **kwargs: Any) -> None:
        if (kwargs.get('env_kwargs') or {}).get('launcher') == 'none':
            raise ValueError(
                'DeepSpeed needs a launcher, for one process too; start with '
                'tools/dist_train.sh (tools/dist_test.sh).')
        mmengine_deepspeed.register_deepspeed_optimizers = register_optimizers
        super().__init__(**kwargs)
        # read from checkpoints as what it is, without classes of configs
        self.config = ConfigDict(self.config).to_dict()
        if 'train_batch_size' not in self.config:
            # tasks differ in it; nothing but logs depends on it
            self.config.setdefault('train_micro_batch_size_per_gpu', 1)
        if self.stage == 3:  # weights alone are saved as one file
            self.config['zero_optimization'].setdefault(
                'stage3_gather_16bit_weights_on_model_save', True)

    @property
    def stage(self) -> int:
        """Which of ZeRO's stages it is; 0 for none."""
        return int(self.config.get('zero_optimization', {}).get('stage', 0))

    @property
    def divides(self) -> bool:
        """Whether a process sees a part of each tensor only."""
        return self.stage == 3

    # ------------------------------------------------------------- building

    def build_optim_wrapper(
            self,
            optim_wrapper: Any,
            model: Optional[nn.Module] = None) -> BaseOptimWrapper:
        """Build the optimizer wrapper, of an ordinary config too.

        Raises:
            ValueError: If it asks for what DeepSpeed does otherwise.
        """
        if isinstance(optim_wrapper, dict):
            optim_wrapper = self._translated(optim_wrapper)
        self.config.setdefault('gradient_clipping', 0.)
        return super().build_optim_wrapper(optim_wrapper, model)

    def _translated(self, cfg: dict) -> dict:
        """The config of a wrapper; what it asks for becomes DeepSpeed's."""
        cfg = {'type': 'OptimWrapper', **cfg}
        if type_name(cfg) == 'AmpOptimWrapper':
            raise ValueError(
                'DeepSpeed does mixed precision itself; leave `--amp` out, '
                'and set `strategy.bf16=dict(enabled=True)` and '
                "`strategy.inputs_to_half=['inputs']`.")
        if type_name(cfg) != 'OptimWrapper':
            return cfg
        clip = dict(cfg.pop('clip_grad', None) or {})
        count = cfg.pop('accumulative_counts', 1)
        norm = clip.pop('max_norm', 0.)
        if clip.pop('type', 'norm') != 'norm' or clip.pop('norm_type', 2) != 2:
            raise ValueError(
                'DeepSpeed clips gradients by their 2-norm alone; set '
                '`optim_wrapper.clip_grad=dict(max_norm=…)`.')
        self.config.setdefault('gradient_clipping', norm)
        if count > 1:
            self.config['gradient_accumulation_steps'] = count
        return dict(cfg, type='DeepSpeedOptimWrapper')

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not hasattr(self, 'optim_wrapper') and self.stage < 3:
            # there is no optimizer to divide in tests
            self.config['zero_optimization'] = dict(stage=0)
        return super()._wrap_model(model)

    # ---------------------------------------------------------- checkpoints

    def save_checkpoint(self,
                        filename: str,
                        *,
                        extra_ckpt: Optional[dict] = None,
                        callback: Optional[Callable] = None,
                        **kwargs: Any) -> None:
        """Save a folder, or a file of the weights alone; hooks see it first.

        Args:
            filename (str): Its path.
            extra_ckpt (dict, optional): What else it holds.
            callback (Callable, optional): Is called with that.
            **kwargs: See mmengine's.
        """
        extra = {'meta': {}, **(extra_ckpt or {})}
        if callback is not None:
            callback(extra)
        super().save_checkpoint(filename, extra_ckpt=extra, **kwargs)

    def load_checkpoint(self,
                        filename: str,
                        *,
                        map_location: Any = 'cpu',
                        callback: Optional[Callable] = None,
                        **kwargs: Any) -> dict:
        """Load the weights of a checkpoint of any run.

        Args:
            filename (str): Its path.
            map_location: See :func:`torch.load`. Defaults to 'cpu'.
            callback (Callable, optional): Is called with the checkpoint.
            **kwargs: See mmengine's ``load_model_state_dict``.
        """
        self.logger.info(f'Load checkpoint from {filename}')
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location)
        params = [
            param for param in self.model.module.parameters()
            if hasattr(param, 'ds_id')
        ]
        from deepspeed.runtime.zero import GatheredParameters
        with GatheredParameters(params, modifier_rank=0):
            if callback is not None:
                callback(checkpoint)
            self.load_model_state_dict(
                checkpoint.get('state_dict', checkpoint), **kwargs)
        if hasattr(self.model.optimizer, 'refresh_fp32_params'):
            self.model.optimizer.refresh_fp32_params()
        return checkpoint

    def resume(self,
               filename: str,
               *,
               callback: Optional[Callable] = None,
               **kwargs: Any) -> dict:
        """Go on from a folder; hooks see its notes before they are used.

        Raises:
            CheckpointError: If it is none.
        """
        if not osp.isdir(filename):
            raise CheckpointError(
                f'{filename} is no folder of DeepSpeed, so it lacks the '
                'optimizer; start from its weights with `load_from` and '
                '`resume=False`.')
        load = self.model.load_checkpoint
        # its own would build any object that a file names
        self.model.checkpoint_engine.load = read_part

        def load_and_tell(*args: Any, **kwargs: Any) -> Tuple[str, dict]:
            path, notes = load(*args, **kwargs)
            if callback is not None:
                callback(dict(notes, state_dict=self._shapes()))
            return path, notes

        self.model.load_checkpoint = load_and_tell
        try:
            return super().resume(filename, **kwargs)
        finally:
            del self.model.load_checkpoint, self.model.checkpoint_engine.load

    def _shapes(self) -> Dict[str, Tensor]:
        """The weights of all processes together, without memory."""
        return {
            name: torch.empty(
                getattr(value, 'ds_shape', value.shape), device='meta')
            for name, value in self.model.module.state_dict(
                keep_vars=True).items()
        }


def read_part(path: str, map_location: Any = None) -> Any:
    """A file of a folder: numbers, and what DeepSpeed notes of itself.

    Args:
        path (str): The file.
        map_location: See :func:`torch.load`. Defaults to None.

    Raises:
        UntrustedPickleError: If it holds anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import (DynamicLossScaler,
                                                    LossScaler)
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    own = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(own):
        return load_pickle(path, map_location)


def register_optimizers() -> None:
    """Register those optimizers of DeepSpeed that this version has."""
    for module, names in _OPTIMIZERS.items():
        with suppress(ImportError):
            found = import_module(f'deepspeed.{module}')
            for name in names:
                OPTIMIZERS.register_module(
                    module=getattr(found, name), force=True)

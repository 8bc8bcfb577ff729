# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .deepspeed_strategy import DeepSpeedStrategy
from .fsdp_strategy import FSDPStrategy

__all__ = ['DeepSpeedStrategy', 'FSDPStrategy']

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .bank import AdapterBank
from .base_adapter import BaseAdapter
from .bottleneck import BottleneckAdapter
from .building import adapter_class, build_adapter
from .conv_pass import ConvPass
from .group import Group, PackedGroup, ReadOut
from .lora import LoRA
from .low_rank_adapter import LowRankAdapter, Packed
from .side_ladder import SideLadder

#: The name it had in 0.1.0.
PluginNeck = SideLadder

__all__ = [
    'AdapterBank', 'BaseAdapter', 'BottleneckAdapter', 'ConvPass', 'Group',
    'LoRA', 'LowRankAdapter', 'Packed', 'PackedGroup', 'PluginNeck',
    'ReadOut', 'SideLadder', 'adapter_class', 'build_adapter'
]

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .bank import AdapterBank
from .base_adapter import BaseAdapter
from .conv_pass import ConvPass

__all__ = ['AdapterBank', 'BaseAdapter', 'ConvPass']

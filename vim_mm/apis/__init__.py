# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .comparison import Variant, VariantResult, run_variant, variants
from .inferencer import ViMInferencer
from .report import Row, Step, write_report

__all__ = [
    'Row', 'Step', 'Variant', 'VariantResult', 'ViMInferencer', 'run_variant',
    'variants', 'write_report'
]

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Comparison of experiments: variants, evidence, images and report page."""

from .comparison import Variant, VariantResult, run_variant, variants
from .page import Row, Step, write_report

__all__ = [
    'Row', 'Step', 'Variant', 'VariantResult', 'run_variant', 'variants',
    'write_report'
]

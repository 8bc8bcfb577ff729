# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Comparison of experiments: variants, evidence, images and report page."""

from .comparison import VariantResult, run_variant
from .page import Page, write_report
from .steps import Answer, Chart, Contrast, Gallery, Made, Row, Step
from .variants import Variant, baselines, variants

__all__ = [
    'Answer', 'Chart', 'Contrast', 'Gallery', 'Made', 'Page', 'Row', 'Step',
    'Variant', 'VariantResult', 'baselines', 'run_variant', 'variants',
    'write_report'
]

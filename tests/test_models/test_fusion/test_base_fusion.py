# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is said of all fusions: the page about them, and their registry."""

import re
from pathlib import Path

import pytest

from _tiny import occupy
from vim_mm.models.fusion import BaseFusion, LearnedFusion, build_fusion
from vim_mm.registry import MODELS

PAGE = Path(__file__).parents[3] / 'docs/fusion.md'
CONFIGS = re.findall(r'^\| `(dict\(type=.*?\))` \|', PAGE.read_text(), re.M)


def registered() -> set:
    return {name for name, value in MODELS.module_dict.items()
            if isinstance(value, type) and issubclass(value, BaseFusion)}


def test_the_page_names_every_fusion() -> None:
    assert {eval(cfg)['type'] for cfg in CONFIGS} == registered()
    assert len(CONFIGS) == len(set(CONFIGS)) >= 9


@pytest.mark.parametrize('cfg', CONFIGS)
def test_what_the_page_says_can_be_built(cfg: str) -> None:
    fusion = build_fusion(eval(cfg), occupy('abc', 4, 6))
    assert fusion.gates('default').shape == (2, 3)
    learned = re.search(rf'\| `{re.escape(cfg)}` \|.*\| (.*?) \| [^|]*\|$',
                        PAGE.read_text(), re.M).group(1)
    count = sum(p.numel() for p in fusion.parameters())
    numbers = {'nothing': 0, 'S·N': 6, 'S·(N+1)': 8,
               'S·N + N·(sum of widths)': 6 + 3 * 10}
    assert count == numbers[learned]
    assert isinstance(fusion, LearnedFusion) == (count > 0)


def test_unknown_kinds_are_a_sentence() -> None:
    with pytest.raises(ValueError, match="'Soup' is no kind.*'EnsMoE'"):
        build_fusion(dict(type='Soup'), occupy('a', 4))

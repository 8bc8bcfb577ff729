# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: the closed form behind a ranking, and behind gates that start."""

from typing import Iterator

import torch
from harness import Benchmark, Goal, Result, Settings, take_turns

from vim_mm.evaluation.ridge import held_out_score
from vim_mm.evaluation.unlike_halves import DEALS, unlike_halves

IMAGES, PATCHES, WIDTH, CLASSES = 40, 75, 384, 11
#: What scores of eight modules take at most: alone, and at all strengths.
RANKED, STARTED = 10, 40


def of_closed_form(settings: Settings) -> Iterator[Result]:
    """Halves and scores of patches of 40 images, ViT-S, noise."""
    images, width = (6, 16) if settings.quick else (IMAGES, WIDTH)
    picture = torch.arange(images).repeat_interleave(PATCHES)
    labels = torch.randint(CLASSES, picture.shape)
    x = torch.randn(len(picture), width) + torch.randn(CLASSES, width)[labels]

    def score(times: int) -> None:
        halves = unlike_halves([x] * min(times, RANKED), labels, picture,
                               DEALS)
        for _ in range(times):
            held_out_score(x, labels, halves, picture)

    for times in (RANKED, STARTED):
        seconds = take_turns(dict(ours=lambda: score(times)),
                             settings.runs(3)).median('ours')
        yield Result(seconds, seconds, runs=settings.runs(3))


RANKING = 'closed form, 8 modules, 40 images'
BENCHMARKS = [
    Benchmark(RANKING, [
        Goal(f'{RANKING}: rank', 'one second', 10.),
        Goal(f'{RANKING}: start gates', 'one second', 10.)
    ], of_closed_form)
]

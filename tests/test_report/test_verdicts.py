# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a comparison says of values whose answer is plain."""

from typing import Dict, List, Sequence

import pytest

from vim_mm.report.steps import Contrast, Row
from vim_mm.report.verdicts import best_single, claims, gain, spread, verdict

FUSED = Contrast('What fusing adds', 'recommended', 'frozen trunk')


def values(*numbers: float) -> Dict[int, float]:
    return dict(enumerate(numbers))


def rows(**methods: Sequence[float]) -> List[Row]:
    names = dict(trunk='frozen trunk', a='single: a', b='single: b')
    return [
        Row('s', 't', names.get(key, key), 'mIoU', value, 4, 8, 1., 1., seed)
        for key, found in methods.items() for seed, value in enumerate(found)
    ]


def test_gains_are_paired_by_seed() -> None:
    found = gain(values(.5, .8, .6), values(.4, .7, .5))
    assert found.mean == pytest.approx(.1) and found.seeds == 3
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.better and not found.worse
    noisy = gain(values(.5, .7), values(.4, .8))
    assert noisy.mean == pytest.approx(0)
    assert noisy.error == pytest.approx(.1)
    assert not noisy.better and not noisy.worse
    assert str(noisy) == '+0.000 ± 0.100'
    assert gain({0: 1.}, {1: 1.}) is None
    alone = gain({3: .2}, {3: .5, 4: .1})
    assert alone.worse and alone.error is None and str(alone) == '-0.300'


@pytest.mark.parametrize(('methods', 'said'), [
    # nothing helps, or not by more than noise
    (dict(trunk=(.5, .5), a=(.3, .4), recommended=(.4, .4)),
     'Use the frozen trunk: nothing here is better.'),
    (dict(trunk=(.5, .5), a=(.4, .7), recommended=(.4, .65)),
     'Use the frozen trunk: nothing here is better.'),
    # one module is as good as all
    (dict(trunk=(.1, .2), a=(.5, .6), b=(.3, .3), recommended=(.5, .6)),
     'The module a alone is enough: +0.400 ± 0.000 over the frozen trunk, '
     '+0.000 ± 0.000 over recommended.'),
    # fusing helps most, by the simplest fusion that does
    (dict(trunk=(.1, .2), a=(.2, .3), recommended=(.5, .6)),
     'Fuse (recommended): +0.400 ± 0.000 over the frozen trunk, '
     '+0.300 ± 0.000 over the best single module, a.'),
    (dict(trunk=(.1, .2), a=(.2, .3), uniform=(.5, .7), recommended=(.6, .6)),
     'Fuse (uniform)'),
    # one seed
    (dict(trunk=(.1, ), a=(.2, ), recommended=(.3, )),
     'Fuse (recommended): +0.200 over the frozen trunk, +0.100 over the best '
     'single module, a.'),
    # a reference is never recommended
    ({'trunk': (.5, .5), 'a': (.4, .4), 'recommended': (.4, .4),
      'full fine-tuning': (.9, .9)}, 'Use the frozen trunk'),
])
def test_the_simplest_that_is_not_worse(methods: dict, said: str) -> None:
    claim, = claims(rows(**methods), FUSED)
    assert claim.verdict.startswith(said)
    # what the sentence names has a bar, too
    named = [name for name in methods if said.startswith(f'Fuse ({name})')]
    assert list(claim.bars) == [*dict.fromkeys(
        ['frozen trunk', best_single_of(methods), *named, 'recommended'])]


def best_single_of(methods: dict) -> str:
    return best_single({
        f'single: {name}': values(*methods[name])
        for name in 'ab' if name in methods
    })


@pytest.mark.parametrize(('result', 'said'), [
    ((.6, .7), ''),
    ((.3, .4), ''),
    ((.4, .7), 'No more than one standard error from student alone.'),
    ((.5, .6), 'The same as student alone.'),
])
def test_without_modules(result: tuple, said: str) -> None:
    methods = {'student alone': values(.5, .6), 'KD': values(*result)}
    assert verdict(methods, 'KD', 'student alone') == said


def test_a_claim_for_each_task_that_has_both() -> None:
    found = rows(trunk=(.1, ), recommended=(.2, ))
    for row in rows(trunk=(.3, ), recommended=(.2, )):
        row.task = 'u'
        found.append(row)
    lonely = rows(recommended=(.2, ))[0]
    lonely.task = 'v'
    assert [c.task for c in claims([*found, lonely], FUSED)] == ['t', 'u']
    assert claims(found, None) == []
    assert claims(found, Contrast('?', 'absent', 'frozen trunk')) == []


def test_a_name_may_go_on_but_the_whole_one_comes_first() -> None:
    methods = [('LP-FT', .1), ('IRF: head alone', .2), ('IRF', .4)]
    found = [Row('s', 't', m, 'a', v, 1, 1, 1., 1.) for m, v in methods]
    claim, = claims(found, Contrast('?', 'IRF', 'LP-FT'))
    assert claim.gain.mean == pytest.approx(.3)
    claim, = claims(found[:2], Contrast('?', 'IRF', 'LP-FT'))
    assert claim.gain.mean == pytest.approx(.1)


def test_what_lacks_a_seed_is_left_out_of_the_verdict() -> None:
    """A broken run must not compare other seeds with each other."""
    found = rows(trunk=(.1, .5), a=(.9, ), b=(.2, .6), recommended=(.4, .8))
    claim, = claims(found, FUSED)
    assert list(claim.bars) == ['frozen trunk', 'single: b', 'recommended']
    assert 'Fuse (recommended)' in claim.verdict
    found = [row for row in found if row.seed or row.method != 'recommended']
    claim, = claims(found, FUSED)  # the seed that both have
    assert claim.gain.seeds == 1 and claim.bars['frozen trunk'] == .5


def test_spread() -> None:
    assert spread([.5]) == '0.500'
    assert spread([.4, .6]) == '0.500 ± 0.141'
    assert spread([.4, .6], '+') == '+0.500 ± 0.141'

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How far something is: a bar on a terminal, elsewhere a line at times."""

import io
import sys

import pytest

from vim_mm.utils import progress


class Clock:
    """Time that goes on by a step whenever it is asked."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0., step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list:
    lines: list = []
    monkeypatch.setattr(progress, 'print_log',
                        lambda line, logger: lines.append(line))
    return lines


@pytest.mark.parametrize('step,number', [(.01, 0), (4., 2), (11., 7)])
def test_a_line_every_ten_seconds(step: float, number: int, said: list,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, 'time', Clock(step))
    items = list(progress.track(iter('abcdefgh'), 'Caching', 8))
    assert ''.join(items) == 'abcdefgh' and len(said) == number
    assert all(line.startswith('Caching: ') for line in said)
    if number == 7:
        assert said[0] == 'Caching: 1/8, 154 s left'


def test_a_bar_on_a_terminal(said: list,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):

        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, 'stderr', screen)
    monkeypatch.setenv('TERM', 'xterm')
    assert list(progress.track('ab', 'Caching', 2)) == ['a', 'b']
    assert 'Caching' in screen.getvalue() and not said


def test_other_processes_are_silent(said: list,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, 'time', Clock(99.))
    monkeypatch.setattr(progress, 'is_main_process', lambda: False)
    assert list(progress.track('abc', 'Caching', 3)) == list('abc')
    assert not said

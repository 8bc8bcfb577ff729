# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images of several tasks in batches, and those that have no answer.

Whatever goes wrong with an image is noted, and all others go on.
"""

import logging
from collections import defaultdict
from itertools import zip_longest
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from .inputs import Request, and_more

Forward = Callable[[List[Request]], List[BaseDataElement]]


def group_by_size(requests: Iterable[Request],
                  batch_size: int) -> Iterator[List[Request]]:
    """Batches of images of one task and one size.

    Few images of a task wait in memory, however many sizes there are. Its
    batches are those it would have without other tasks, so tasks that are
    asked the same, image by image, have their batches in common.

    Args:
        requests (Iterable[Request]): The images, read.
        batch_size (int): Images a batch.
    """
    waiting: Dict[str, Dict[tuple, List[Request]]] = defaultdict(dict)
    for one in requests:
        sizes, key = waiting[one.task], one.data['inputs'].shape
        sizes.setdefault(key, []).append(one)
        if len(sizes[key]) == batch_size:
            yield sizes.pop(key)
        elif sum(map(len, sizes.values())) > 4 * batch_size:
            yield sizes.pop(next(iter(sizes)))
    # of all tasks the first size, then the second
    for batches in zip_longest(*map(dict.values, waiting.values())):
        yield from filter(None, batches)


class Failures:
    """Images of a call that have no answer, and why."""

    def __init__(self) -> None:
        self._errors: Dict[int, str] = {}
        self._cause: Optional[Exception] = None

    def add(self, batch: List[Request], error: Exception) -> None:
        """Note why images have no answer.

        Only the first error itself is kept: each holds, by its traceback,
        the images that it is about.
        """
        self._cause = self._cause or error
        reason = (str(error) or type(error).__name__).rstrip('.')
        for one in batch:
            one.data = one.loaded = None
            self._errors[one.index] = (f"Task '{one.task}' cannot answer "
                                       f'{one.path or one.name}: {reason}.')

    def report(self, num: int) -> Dict[int, str]:
        """All sentences in the order of the images, which are also logged.

        Args:
            num (int): How many images there were.

        Raises:
            ValueError: If none has an answer.
        """
        errors, cause = dict(sorted(self._errors.items())), self._cause
        self._cause = None
        if errors and len(errors) == num:
            first = next(iter(errors.values())).rstrip('.')
            raise ValueError(f'{first}{and_more(list(errors))}.') from cause
        for sentence in errors.values():
            print_log(sentence, logger='current', level=logging.WARNING)
        return errors


def read_each(requests: Iterable[Request], read: Callable[[Request], None],
              failures: Failures) -> Iterator[Request]:
    """The images that can be read, as they are asked for."""
    for one in requests:
        try:
            read(one)
        except Exception as error:  # loaders raise all kinds
            failures.add([one], error)
            continue
        yield one


def answer_each(
    batches: Iterable[List[Request]], forward: Forward, failures: Failures
) -> Iterator[Tuple[Request, BaseDataElement]]:
    """What a model says of batches, image by image if a batch fails."""
    for batch in batches:
        samples: Optional[List[BaseDataElement]] = None
        try:
            samples = forward(batch)
        except Exception as error:  # models raise all kinds
            if len(batch) == 1:
                failures.add(batch, error)
                continue
        if samples is None:
            yield from answer_each([[one] for one in batch], forward, failures)
        else:
            yield from zip(batch, samples)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Lines of the stack that say nothing to a user, kept out of the log."""

import logging
import warnings
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from io import StringIO
from typing import Any, Iterator

from mmengine import logging as mmengine_logging
from mmengine.logging import MMLogger
from mmengine.logging import logger as mmengine_logger

#: What mmengine says of each frozen parameter where rates differ.
_FROZEN = 'is skipped since its requires_grad=False'


def drop_debug_prints() -> None:
    """Let ``print_log`` print no debug message where no logger is named.

    It prints whatever the level says, so each library tells of an optional
    package that it lacks. Idempotent; it counts for what is imported later.
    """
    original = mmengine_logger.print_log
    if hasattr(original, 'drops_debug'):
        return

    @wraps(original)
    def print_log(msg: Any,
                  logger: Any = None,
                  level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            original(msg, logger, level)

    print_log.drops_debug = True
    for module in (mmengine_logger, mmengine_logging):
        module.print_log = print_log


def drop_frozen(record: logging.LogRecord) -> bool:
    """A filter of a logger: a trunk has hundreds of frozen parameters."""
    return not str(record.msg).endswith(_FROZEN)


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context errors alone are logged, and nothing is printed.

    For models that are built to be looked at: what is said of a run with
    them, such as that their weights are random, is not so.
    """
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""torchrun without a report of its own: the processes have spoken.

Where one of them ends with a sentence, torchrun adds a page of traceback and
table that hides it. Options are torchrun's.
"""

import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        code = first.exitcode  # of a signal it is negative
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval)

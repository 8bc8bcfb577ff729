# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The command ``vim-mm``, also ``python -m vim_mm``."""

from .utils.commands import main

if __name__ == '__main__':
    main()

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What ``zoo_curve.py`` has run, as a table."""

from typing import Any, Dict, List, Mapping

from rich.table import Table

from vim_mm.report.verdicts import spread

#: by data set, images and what is run: a value for each seed
Values = Dict[str, Dict[int, Dict[str, List[float]]]]
COLUMNS = ('0', '2', '4', 'all', 'own module')


def values_of(rows: List[Mapping[str, Any]]) -> Values:
    """Values by the columns of the table; those of other seeds side by side.
    """
    found: Values = {}
    for row in rows:
        num = str(row.get('num_modules', COLUMNS[-1]))
        column = num if num in COLUMNS else 'all'
        sizes = found.setdefault(row['data'], {})
        sizes.setdefault(row['size'], {}).setdefault(column, []).append(
            row['value'])
    return found


def curve_table(rows: List[Mapping[str, Any]]) -> Table:
    """Mean and deviation over seeds, a line for each number of images."""
    table = Table(title='Accuracy, mIoU or AP50, by number of modules')
    table.add_column('data left out')
    table.add_column('images', justify='right')
    for column in COLUMNS:
        table.add_column(column, justify='right')
    for data, sizes in values_of(rows).items():
        for size, found in sorted(sizes.items()):
            table.add_row(
                data, str(size), *(spread(found[column]) if column in found
                                   else '' for column in COLUMNS))
        table.add_section()
    return table

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What figures of runs have in common: their numbers, and the file."""

from pathlib import Path
from typing import List, Tuple

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from vim_mm.utils.messages import InputError
from vim_mm.utils.reading import (JSON_BYTES, ReadError, open_regular,
                                  parse_json)


def find_scalars(run: Path) -> Path:
    """The scalars of the latest start of a run.

    Args:
        run (Path): Its work_dir, or the file itself.

    Raises:
        FileNotFoundError: If there are none.
    """
    if run.is_file():
        return run
    found = sorted(run.rglob('vis_data/scalars.json'))
    if not found:
        raise FileNotFoundError(
            f"There is no vis_data/scalars.json under '{run}': name the "
            'work_dir of a run whose visualizer has a LocalVisBackend.')
    return found[-1]  # folders are named after the time of the start


def read_scalars(path: Path) -> List[dict]:
    """The records of a run, in the order in which they were logged.

    Raises:
        ValueError: If the file is of another kind.
    """
    records = []
    try:
        with open_regular(path) as file:
            while line := file.readline(JSON_BYTES):
                if not line.endswith(b'\n'):
                    if len(line) == JSON_BYTES:
                        raise ReadError('it has a line that is too long')
                    break  # a run that goes on may have written half of it
                record = parse_json(line, finite=False)
                if not isinstance(record, dict):
                    raise ReadError('a line is no JSON object')
                records.append(record)
    except (OSError, ReadError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(f"'{path}' is no scalars.json of a run: "
                         f'{error}.') from error
    return records


def check_format(out: Path) -> None:
    """Refuse names of files that no figure can be written to.

    Raises:
        ValueError: If the suffix names no format.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"An image cannot be written to '{out}'; give a "
                         f'file with one of the suffixes {sorted(formats)}.')


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure; its suffix names the format."""
    check_format(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def ink(color: Tuple[float, ...]) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue, *_ = color
    dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
    return 'white' if dark else 'black'

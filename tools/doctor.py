# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Examine the installation: ``python tools/doctor.py``.

Exits with 1 if something that vim_mm needs is broken.
"""

import argparse
import sys

#: What the examination itself needs, by the name that cannot be imported.
FIXES = dict(
    vim_mm='pip install -e . (on a clone)',
    mmengine='pip install onedl-mmengine',
    cv2='pip install opencv-python-headless')
try:
    from rich.markup import escape
    from rich.table import Table

    from vim_mm.utils.cli import run_cli, table_console
    from vim_mm.utils.doctor import by_topic, examine, worst
except ImportError as error:
    # mmengine needs OpenCV, which may need libGL
    missing = (error.name or 'cv2').split('.')[0]
    sys.exit(f'broken import of {missing}: {error}\nbroken {missing} -> '
             f'{FIXES.get(missing, f"pip install {missing}")}')

COLORS = dict(ok='green', note='yellow', broken='red')


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Examine the installation and say how to fix it')
    parser.add_argument(
        '--zoo',
        nargs='+',
        metavar='DIR',
        help='zoos whose modules to verify (default: those of the guides and '
        'demos, work_dirs/zoo and work_dirs/demo/zoo, if there are any)')
    args = parser.parse_args()

    def check_zoos() -> list:
        from vim_mm.zoo import zoo_checks  # what it needs may be missing
        return zoo_checks.check_zoos(args.zoo)

    console = table_console()
    checks = examine(check_zoos)
    for topic, group in by_topic(checks).items():
        table = Table('', '', '', title=topic, title_justify='left',
                      show_header=False, box=None)  # yapf: disable
        for check in group:
            color = COLORS[check.state]
            table.add_row(escape(check.name), f'[{color}]{check.state}[/]',
                          escape(check.detail))
        console.print(table)
    for check in checks:
        if check.mend:
            # one line each, to be copied: no wrapping, no markup
            console.print(
                f'{check.state} {check.name} -> {check.mend}',
                soft_wrap=True,
                markup=False,
                highlight=False)
    broken, notes = worst(checks)
    console.print(f'{len(checks)} checks, {broken} broken, {notes} notes')
    return 1 if broken else 0


if __name__ == '__main__':
    run_cli(main)

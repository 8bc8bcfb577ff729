# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The command ``vim-mm``: all tools, for those who installed a wheel."""

import ast
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Dict, List, Optional

from rich.table import Table

from vim_mm.version import __version__
from .cli import run_cli, table_console
from .files import shipped

#: Folders of the tools whose scripts are commands.
FOLDERS = ('.', 'analysis_tools', 'model_converters')
#: Scripts that belong to a clone, or to the shell scripts beside them.
LEFT_OUT = ('demo', 'launch')


class CommandError(ValueError):
    """There is no such command."""


def main() -> None:
    """Run the tool that the first argument names; without one, list all."""
    name, *rest = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        run_cli(list_commands)
    if name == '--version':
        run_cli(lambda: print(f'vim_mm {__version__}'))
    run_cli(lambda: run_command(name, rest))


def list_commands() -> None:
    """Print a line on each command."""
    lines = {name: first_line(path) for name, path in commands().items()}
    table = Table('command', 'what it does', box=None)
    for name in sorted(lines):
        table.add_row(name, lines[name])
    console = table_console()
    console.print(table)
    console.print('\nvim-mm COMMAND --help says how it is called.')


def run_command(name: str, args: List[str]) -> Optional[int]:
    """Run a tool in this process.

    Args:
        name (str): Name of the command.
        args (list[str]): What follows it on the command line.

    Returns:
        int | None: Its exit code.

    Raises:
        CommandError: If there is none of that name.
    """
    known = commands()
    if name not in known:
        near = get_close_matches(name.replace('_', '-'), known, 1, 0.5)
        hint = f'did you mean {near[0]}?' if near else \
            f'there are {", ".join(sorted(known))}.'
        raise CommandError(f'There is no command {name!r}; {hint}')
    # argparse takes the name of the program from here
    sys.argv = [f'vim-mm {name}', *args]
    return load_tool(known[name]).main()


def commands() -> Dict[str, Path]:
    """The scripts of all commands, by name."""
    return {
        path.stem.replace('_', '-'): path
        for folder in FOLDERS
        for path in sorted((shipped('tools') / folder).glob('*.py'))
        if path.stem not in LEFT_OUT
    }


def first_line(path: Path) -> str:
    """What a script does, by its docstring, without its command line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    line = text.partition('\n')[0]
    return line.partition(': ``')[0].rstrip('.:')


def load_tool(path: Path) -> ModuleType:
    """Import a script; by itself it does nothing."""
    spec = importlib.util.spec_from_file_location(
        f'vim_mm_tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

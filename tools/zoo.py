# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""List, check, change and rank a zoo of modules."""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmengine.registry import init_default_scope
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

# first of all, so that configs of the scopes resolve and loaders are safe
import vim_mm  # noqa: F401
from vim_mm.utils.cli import print_json, run_cli, table_console, visible
from vim_mm.utils.commands import run_command
from vim_mm.utils.config import add_cfg_options, read_config, type_name
from vim_mm.utils.described import card_fields
from vim_mm.utils.kinds import check_kind
from vim_mm.utils.messages import LINES, first_lines
from vim_mm.zoo import ModuleCard, Zoo, ZooError, head_state, save_module
from vim_mm.zoo.folder import CARD
from vim_mm.zoo.parts import NOT_STATED


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    def command(name: str, run: Any, text: str,
                *aliases: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, aliases=aliases, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command('list', list_modules, 'List the modules of a zoo.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = command('show', show_module, 'Show the card of a module.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('name', help='name of the module')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = command('verify', verify_modules, 'Check files against cards.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('name', nargs='?', help='one module; default: all')

    sub = command('add', add_modules, 'Copy verified modules into a zoo.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('source', help='folder of a module, or another zoo')
    sub.add_argument('--name', help='a new name, for a single module')

    sub = command('push', push_module, 'Write a module into one tar, to '
                  'hand on.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('name', help='name of the module')
    sub.add_argument('out', help='the .tar to write')

    sub = command('pull', pull_module, 'Add a module from a tar, by path or '
                  'URL.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('source', help='path, or URL (file, http, https)')
    sub.add_argument(
        '--sha256', metavar='HEX', help='what the tar must hash to')
    sub.add_argument('--name', help='a new name')

    sub = command('remove', remove_module, 'Delete a module from a zoo.')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('name', help='name of the module')
    sub.add_argument('--yes', action='store_true', help='do not ask')

    sub = command('save', save_trained, 'Save the module that a config trains '
                  'from its checkpoint. Fields of the card come from the '
                  "config's top-level dict module_card.")
    sub.add_argument('config', help='config that the model was trained with')
    sub.add_argument('checkpoint', help='checkpoint of the training')
    sub.add_argument('zoo', help='directory of the zoo')
    sub.add_argument('--name', help='its name in the zoo')
    sub.add_argument(
        '--overwrite', action='store_true', help='replace a module')
    add_cfg_options(sub)

    # its options are those of the tool
    command('rank', None, 'Score modules for the task of a config, before any '
            'training: the same as `vim-mm rank`.', 'score')
    return parser.parse_args(argv)


def list_modules(args: argparse.Namespace) -> None:
    bad: Dict[str, str] = {}
    cards = [card.to_dict() for card in Zoo(args.zoo).cards(bad)]
    if not (cards or bad) and Path(args.zoo, CARD).is_file():
        raise ZooError(f"'{args.zoo}' is a module, and no zoo; name the "
                       'folder that it lies in.')
    if args.json:
        rows = cards + [
            dict(name=name, error=error) for name, error in bad.items()
        ]
        print_json(sorted(rows, key=lambda row: row['name']))
        return
    table = Table('module', 'kind', 'task', 'dataset', 'params', 'metric',
                  'trunk', 'licence')
    table.columns[0].overflow = 'fold'
    for row in cards:
        trunk = row['trunk']
        cells = (row['name'], row['kind'], row['task'], row['dataset'],
                 f'{row["num_params"]:,}', metrics_text(row, 1),
                 f'{trunk["type"]} {trunk["fingerprint"][:8]}', row['licence'])
        table.add_row(*(escape(visible(cell or '', 200)) for cell in cells))
    table_console().print(table)
    print_bad(bad)


def print_bad(bad: Dict[str, str]) -> None:
    """A line for each module that something is wrong with, the first ones."""
    lines = (f'{name}: {visible(problem)}' for name, problem in bad.items())
    print(*first_lines(lines), sep='\n', end='\n' * bool(bad))


def metrics_text(card: Dict[str, Any], limit: Optional[int] = None) -> str:
    return ', '.join(f'{m["name"]} {m["value"]:g} (n={m["n"]})'
                     for m in card['metrics'][:limit])


def show_module(args: argparse.Namespace) -> None:
    card = Zoo(args.zoo).card(args.name)
    if args.json:
        print_json(card.to_dict())
        return
    fields = card.to_dict()
    fields['metrics'] = metrics_text(fields)
    slots, dims = fields.pop('slots'), fields.pop('dims')
    sizes = ', '.join(sorted({str(each) for each in dims.values()}))
    fields['classes'] = short_list(fields['classes'])
    fields['parts'] = '; '.join(
        f'{part["name"]} ({part.get("dataset") or "data not stated"}, '
        f'{part.get("licence") or NOT_STATED})' for part in fields['parts'])
    fields['slots'] = (f'{len(slots)}: {slots[0]} … {slots[-1]}, '
                       f'dims {sizes}')
    table = Table('field', 'value', title=card.name)
    table.columns[1].overflow = 'fold'
    for key, value in fields.items():
        if value not in (None, '', {}):
            table.add_row(key, escape(visible(value)))
    table_console().print(table)


def short_list(names: List[str], number: int = 10) -> str:
    more = len(names) - number
    listed = ', '.join(names[:number])
    return f'{len(names)}: {listed}, …' if more > 0 else listed


def verify_modules(args: argparse.Namespace) -> None:
    zoo, bad = Zoo(args.zoo), {}
    names, misnamed = [args.name], {}
    if args.name is None:
        names, misnamed = zoo.names(), zoo.misnamed()
    if not names and not misnamed:
        raise ZooError(f'{args.zoo} holds no module to verify: check the '
                       'path.')
    table = Table('module', 'result')
    for name in names:
        try:
            problems = zoo.verify(name)
        except ZooError:
            if args.name is None and name not in zoo:
                continue  # it was removed meanwhile
            raise
        if problems:
            bad[name] = ' '.join(problems)
        else:
            table.add_row(name, '[green]ok')
    bad.update(misnamed)
    for name in islice(bad, LINES):
        table.add_row(escape(name), '[red]not valid')
    table_console().print(table)
    print_bad(bad)
    if bad:
        raise ZooError(f'{len(bad)} of {len(names) + len(misnamed)} modules '
                       'are not valid.')


def add_modules(args: argparse.Namespace) -> None:
    bad: Dict[str, str] = {}
    added = Zoo(args.zoo).add(args.source, args.name, bad)
    for name in added:
        print(f'Added {name} to {visible(args.zoo)}.')
    print_bad(bad)
    if bad:
        raise ZooError(f'{len(bad)} of {len(added) + len(bad)} modules were '
                       'not added.')


def push_module(args: argparse.Namespace) -> None:
    digest = Zoo(args.zoo).push(args.name, args.out)
    print(f'Wrote {args.name} to {visible(args.out)}.\nsha256 {digest}')


def pull_module(args: argparse.Namespace) -> None:
    name, digest = Zoo(args.zoo).pull(args.source, args.sha256, args.name)
    print(f'Added {name} to {visible(args.zoo)}.\nsha256 {digest}')


def remove_module(args: argparse.Namespace) -> None:
    zoo = Zoo(args.zoo)
    if args.name in zoo and not args.yes:
        if not sys.stdin.isatty():
            raise ZooError('Removing a module needs a terminal to ask at, or '
                           '--yes.')
        if not Confirm.ask(f'Delete {args.name} from {args.zoo}?'):
            return
    zoo.remove(args.name)
    print(f'Removed {args.name} from {visible(args.zoo)}.')


def save_trained(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options)
    # mmdet takes seconds to import: not for listing a zoo
    from vim_mm.apis.serving import load_model
    from vim_mm.models.checkpoint_notes import TRUNK_MOVED
    from vim_mm.models.function_notes import trunk_said
    from vim_mm.models.head_origin import head_parts
    backbone = cfg.get('model', {}).get('backbone', {})
    new_module = backbone.get('new_module')
    adapts = 'type' in backbone and type_name(backbone) == 'load_moe'
    if new_module is None and not adapts:
        raise ZooError(f'{args.config!r} trains no module: its model.backbone '
                       'is no ViMBackbone with a new_module, and no load_moe.')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    fields = card_fields(cfg)
    training = dict(fields.pop('training', {}), config=Path(args.config).name)
    fields['training'] = training
    if adapts:
        from vim_mm.apis.experts import save_adapted
        card = save_adapted(cfg, args.checkpoint, args.zoo, args.name,
                            args.overwrite, **fields)
        print_saved(card, args.zoo)
        return
    model, meta = load_model(cfg, args.checkpoint)
    if getattr(model, TRUNK_MOVED, ''):
        raise ZooError(f'The module of {visible(args.checkpoint)} was not '
                       f'saved. {getattr(model, TRUNK_MOVED)}')
    check_kind(model, fields.get('task'), 'module_card.task')
    fields['trunk'] = {**trunk_said(model), **fields.pop('trunk', {})}
    fields.setdefault('classes', list(meta.get('classes') or []))
    card = save_module(
        model.backbone,
        new_module,
        args.zoo,
        head=head_state(model) or None,
        head_parts=head_parts(model),
        save_as=args.name,
        overwrite=args.overwrite,
        **fields)
    print_saved(card, args.zoo)


def print_saved(card: ModuleCard, zoo: str) -> None:
    print(f'Saved {card.name} ({card.num_params:,} parameters) to '
          f'{visible(zoo)}.')


def main(argv: Optional[List[str]] = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (['rank'], ['score']):
        return run_command('rank', argv[1:])
    args = parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # stdout was closed: see run_cli
        raise
    except OSError as error:  # such as a zoo that may not be written
        raise ZooError(str(error)) from error


if __name__ == '__main__':
    run_cli(main)

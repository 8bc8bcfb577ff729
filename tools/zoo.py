# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""List, check and change a zoo of modules."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

# first of all, so that configs of the scopes resolve and loaders are safe
import vim_mm  # noqa: F401
from vim_mm.zoo import Zoo, ZooError, head_state, save_module


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
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
    sub.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value')
    return parser.parse_args(argv)


def list_modules(args: argparse.Namespace) -> None:
    zoo, rows = Zoo(args.zoo), []
    for name in zoo.names():
        try:
            rows.append(zoo.card(name).to_dict())
        except ZooError as error:
            rows.append(dict(name=name, error=str(error)))
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table('module', 'kind', 'task', 'dataset', 'params', 'metrics',
                  'trunk', 'licence')
    table.columns[0].overflow = 'fold'
    for row in rows:
        if 'error' in row:
            table.add_row(row['name'], f'[red]{escape(row["error"])}')
            continue
        table.add_row(row['name'], row['kind'], row['task'], row['dataset'],
                      f'{row["num_params"]:,}', metrics_text(row),
                      f'{row["trunk"]["type"]} '
                      f'{row["trunk"]["fingerprint"][:8]}', row['licence'])
    Console().print(table)


def metrics_text(card: Dict[str, Any]) -> str:
    return ', '.join(f'{m["name"]} {m["value"]:g} (n={m["n"]})'
                     for m in card['metrics'])


def show_module(args: argparse.Namespace) -> None:
    card = Zoo(args.zoo).card(args.name)
    if args.json:
        print(card.to_json(), end='')
        return
    fields = card.to_dict()
    fields['metrics'] = metrics_text(fields)
    slots, dims = fields.pop('slots'), fields.pop('dims')
    sizes = ', '.join(sorted({str(each) for each in dims.values()}))
    fields['slots'] = (f'{len(slots)}: {slots[0]} … {slots[-1]}, '
                       f'dims {sizes}')
    table = Table('field', 'value', title=card.name)
    table.columns[1].overflow = 'fold'
    for key, value in fields.items():
        if value not in (None, '', {}):
            table.add_row(key, escape(str(value)))
    Console().print(table)


def verify_modules(args: argparse.Namespace) -> None:
    zoo, num_bad = Zoo(args.zoo), 0
    names = zoo.names() if args.name is None else [args.name]
    table = Table('module', 'result')
    for name in names:
        problems = zoo.verify(name)
        num_bad += bool(problems)
        table.add_row(name, '\n'.join(map(escape, problems)) or '[green]ok')
    Console().print(table)
    if num_bad:
        raise ZooError(f'{num_bad} of {len(names)} modules are not valid.')


def add_modules(args: argparse.Namespace) -> None:
    for name in Zoo(args.zoo).add(args.source, args.name):
        print(f'Added {name} to {args.zoo}.')


def remove_module(args: argparse.Namespace) -> None:
    zoo = Zoo(args.zoo)
    if args.name in zoo and not args.yes:
        if not sys.stdin.isatty():
            raise ZooError('Removing a module needs a terminal to ask at, or '
                           '--yes.')
        if not Confirm.ask(f'Delete {args.name} from {args.zoo}?'):
            return
    zoo.remove(args.name)
    print(f'Removed {args.name} from {args.zoo}.')


def save_trained(args: argparse.Namespace) -> None:
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model)
    new_module = getattr(getattr(model, 'backbone', None), 'new_module', None)
    if new_module is None:
        raise ZooError(f'{args.config!r} trains no module: its model.backbone '
                       'is no ViMBackbone with a new_module.')
    checkpoint = load_checkpoint(model, args.checkpoint, map_location='cpu')
    found = checkpoint.get('state_dict', checkpoint)
    missing = [key for key in model.state_dict() if key not in found]
    if missing:
        raise ZooError(f'{args.checkpoint!r} is not a checkpoint of this '
                       f'config: it lacks {len(missing)} tensors of the model,'
                       f' the first being {missing[0]!r}.')
    fields = cfg.get('module_card', {})
    training = dict(fields.pop('training', {}), config=Path(args.config).name)
    card = save_module(
        model.backbone,
        new_module,
        args.zoo,
        head=head_state(model) or None,
        save_as=args.name,
        overwrite=args.overwrite,
        training=training,
        **fields)
    print(f'Saved {card.name} ({card.num_params:,} parameters) to '
          f'{args.zoo}.')


def main(argv: Optional[List[str]] = None) -> int:
    args = parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What every preparation shares: packages, one atomic write, one manifest."""

import json
import os
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import cv2
import numpy as np

from vim_mm.utils.files import new_folder
from vim_mm.version import __version__

MANIFEST = 'manifest.json'
JPEG_PARAMS = [cv2.IMWRITE_JPEG_QUALITY, 95]


class PreparationError(RuntimeError):
    """A dataset cannot be prepared; the message says why and names the fix."""


@dataclass(frozen=True)
class Package:
    """A pip package whose data files are read, without importing it.

    Args:
        module (str): Name under which it would be imported.
        install (str): The pip line that installs it, version pinned where
            the data depends on it.
        distribution (str): Its name on the package index.
    """

    module: str
    install: str
    distribution: str

    def folder(self) -> Path:
        """Return the installed folder.

        Raises:
            PreparationError: The package is not installed.
        """
        # a top-level name is found without running the package's own code,
        # whose dependencies may be absent
        spec = util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise PreparationError(
                f'The package {self.distribution!r} that holds the data is '
                f'not installed: run `{self.install}`.')
        return Path(spec.submodule_search_locations[0])

    def file(self, name: str) -> Path:
        """Return the path of one data file of the package.

        Raises:
            PreparationError: The installed version has no such file.
        """
        path = self.folder() / name
        if not path.is_file():
            raise PreparationError(
                f'{self.distribution} {self.version()} has no file {name!r}: '
                f'run `{self.install}`.')
        return path

    def version(self) -> str:
        """Return the installed version."""
        self.folder()
        return metadata.version(self.distribution)


@dataclass(frozen=True)
class Recipe:
    """How one dataset is made.

    Args:
        name (str): Name of the dataset and of its folder.
        packages (Sequence[Package]): Where the data comes from.
        settings (dict): Everything that decides what the files hold, as
            JSON types.
        licences (Dict[str, str]): Licence of each source.
        notes (Sequence[str]): What a user of the data ought to know.
        write (Callable): Fills an empty folder and returns its counts.
    """

    name: str
    packages: Sequence[Package]
    settings: Dict[str, Any]
    licences: Dict[str, str]
    notes: Sequence[str]
    write: Callable[[Path], Dict[str, Any]]

    def manifest(self) -> Dict[str, Any]:
        """Return the part of the manifest that is known in advance."""
        return dict(
            name=self.name,
            # another release may write other files from the same settings
            made_by=f'vim_mm {__version__}',
            settings=self.settings,
            packages={p.distribution: p.version()
                      for p in self.packages},
            licences=self.licences,
            notes=list(self.notes))


def default_out(name: str) -> Path:
    """Return the folder where the demo configs look for a dataset."""
    return Path(os.environ.get('VIM_MM_DEMO_DATA', 'data/demo')) / name


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image; the suffix of ``path`` decides the format.

    Args:
        path (Path): Target in a folder that exists.
        image (np.ndarray): uint8, (H, W) or (H, W, 3) in BGR order.

    Raises:
        OSError: The file cannot be written.
    """
    params = JPEG_PARAMS if path.suffix == '.jpg' else []
    path.write_bytes(cv2.imencode(path.suffix, image, params)[1])


def write_json(path: Path, content: Any, **kwargs) -> None:
    """Write ``content`` as JSON; keyword arguments go to ``json.dumps``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, **kwargs) + '\n', encoding='utf-8')


def prepare(recipe: Recipe, out: Path) -> Tuple[Dict[str, Any], bool]:
    """Write the dataset, or reuse the one that is there.

    What is there is reused if it was made by the same release, settings and
    package versions and none of its files is gone. A new dataset appears
    under ``out`` only when it is whole.

    Args:
        recipe (Recipe): How to make the dataset.
        out (Path): Folder of the dataset.

    Returns:
        Tuple[dict, bool]: The manifest, and whether the data was reused.

    Raises:
        PreparationError: A package is absent, or ``out`` holds something
            that no preparation wrote.
    """
    out = Path(out).resolve()  # a link to a folder stays one
    manifest = recipe.manifest()
    old = _read_manifest(out)
    if old is not None and _is_current(out, old, manifest):
        return old, True
    with new_folder(out) as draft:
        manifest['counts'] = recipe.write(draft)
        manifest['files'] = _count_files(draft)
        write_json(draft / MANIFEST, manifest, indent=2)
    return manifest, False


def run_recipe(recipe: Recipe, out: Path) -> int:
    """Prepare a dataset from the command line.

    Returns:
        int: The exit code: 0, or 1 after one sentence on stderr.
    """
    try:
        manifest, reused = prepare(recipe, out)
    except PreparationError as error:
        print(error, file=sys.stderr)
        return 1
    counts = '; '.join(
        f'{split}: ' + ', '.join(f'{n} {what}' for what, n in part.items())
        for split, part in manifest['counts'].items())
    print(f'{recipe.name} {"reused" if reused else "written"} in {out} '
          f'({counts})')
    return 0


def _read_manifest(out: Path) -> Optional[Dict[str, Any]]:
    """Return the manifest under ``out``, None where there is no data."""
    path = out / MANIFEST
    if path.is_file():
        try:
            return json.loads(path.read_text(encoding='utf-8'))
        except ValueError as error:
            raise PreparationError(
                f'{str(path)!r} is not readable as JSON: delete '
                f'{str(out)!r} to prepare it anew.') from error
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PreparationError(
            f'{str(out)!r} exists but holds no {MANIFEST}, so it is left '
            'alone: name another folder with --out or delete this one.')
    return None


def _is_current(out: Path, old: Dict[str, Any], new: Dict[str, Any]) -> bool:
    """Whether the recipe would write the data that is under ``out``."""
    same = all(old.get(key) == value for key, value in new.items())
    return same and old.get('files') == _count_files(out)


def _count_files(folder: Path) -> int:
    """Count the files of a dataset, its manifest excepted."""
    return sum(path.is_file() and path.name != MANIFEST
               for path in folder.rglob('*'))

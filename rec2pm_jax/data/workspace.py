"""The temporary directory of a preparation: one at a time, in stages that outlive a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in

_IDENTITY = "identity.json"
_RETIRED = "retired"


class Workspace:
    """`<target>.preparing`, on the disk of the target so that its result can be renamed into place.

    Attributes:
      path: the directory.
    """

    def __init__(self, target: Path, path: Path):
        self._target = target
        self.path = path

    def stage(self, name: str, make: Callable[[Path], None]) -> Path:
        """The directory that `make` fills, unless an earlier start with this identity has filled it."""
        final = self.path / name
        if not final.is_dir():
            partial = self.path / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(final)
        return final

    def publish(self, stage: Path) -> None:
        """Renames a finished stage to the target; what was there goes."""
        if self._target.exists():
            self._target.rename(self.path / _RETIRED)
        stage.rename(self._target)


@contextmanager
def workspace(target: Path, identity: dict) -> Iterator[Workspace]:
    """Opens the workspace of `target`.

    Finished stages of a start that was killed are found again if its `identity` (options and inputs)
    was the same, and removed if not. Everything is removed after success and after an error; a kill
    or an interrupt leaves it for the next start.

    Raises:
      UserError: another preparation of this target is running, or the disk is full or read-only.
    """
    path = _path(target)
    with alone_in(path):
        try:
            _put_back(target, path)
            _claim(path, json.dumps(identity, sort_keys=True))
            yield Workspace(target, path)
        except OSError as error:
            _put_back(target, path)
            shutil.rmtree(path, ignore_errors=True)
            raise UserError(
                f"Cannot prepare {target}: {error}. Nothing was changed there and the temporary files "
                "are removed."
            ) from error
        except Exception:
            # Stages of an input that is refused are of no use. A kill or ^C does not come here.
            shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)


def recover(target: Path) -> None:
    """Undoes half of a publication that a kill has left, for who reads `target` before its workspace.

    Raises:
      UserError: another preparation of this target is running.
    """
    path = _path(target)
    if (path / _RETIRED).exists():
        with alone_in(path):
            if target.exists():  # killed after the second rename: all that is left is of no use
                shutil.rmtree(path, ignore_errors=True)
            _put_back(target, path)


def _path(target: Path) -> Path:
    return target.with_name(f"{target.name}.preparing")


def _claim(path: Path, identity: str) -> None:
    file = path / _IDENTITY
    if file.is_file() and file.read_text() == identity:
        return
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    file.write_text(identity)


def _put_back(target: Path, path: Path) -> None:
    """Undoes half of `publish`, between its two renames."""
    if (path / _RETIRED).exists() and not target.exists():
        (path / _RETIRED).rename(target)

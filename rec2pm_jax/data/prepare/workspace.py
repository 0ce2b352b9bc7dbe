"""The temporary directory of a preparation: one process at a time, in stages that survive a kill."""

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
    """The directory `<target>.preparing`, on the disk of the target.

    Because they share a disk, the result can be renamed into place.

    Attributes:
      path: the directory.
    """

    def __init__(self, target: Path, path: Path):
        self._target = target
        self.path = path

    def stage(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the directory of a finished stage, and run the stage unless that is done already.

        Args:
          name: of the stage.
          make: fills an empty directory.
        """
        final = self.path / name
        if not final.is_dir():
            partial = self.path / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(final)
        return final

    def publish(self, stage: Path) -> None:
        """Rename a finished stage to the target, in the place of what was there."""
        if self._target.exists():
            self._target.rename(self.path / _RETIRED)
        stage.rename(self._target)


@contextmanager
def open_workspace(target: Path, identity: dict) -> Iterator[Workspace]:
    """Open the workspace of a target.

    Success and errors remove the workspace. A kill or an interrupt leaves it, and the next start with
    the same `identity` uses its finished stages. A start with another identity removes them.

    Args:
      target: the directory to prepare.
      identity: the options and input files that determine the result; JSON.

    Yields:
      The workspace.

    Raises:
      UserError: another process prepares this target, or the disk is full or read-only.
    """
    path = _workspace_path(target)
    with alone_in(path):
        try:
            _undo_half_publication(target, path)
            _claim(path, json.dumps(identity, sort_keys=True))
            yield Workspace(target, path)
        except OSError as error:
            _undo_half_publication(target, path)
            shutil.rmtree(path, ignore_errors=True)
            raise UserError(
                f"Cannot prepare {target}: {error}. Nothing was changed there and the temporary files "
                "are removed."
            ) from error
        except Exception:
            # The stages of a refused input are of no use. A kill or ^C does not come here.
            shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)


def restore_target(target: Path) -> None:
    """Restore a target that a kill left between the two renames of `Workspace.publish`.

    Call it before reading `target` without opening its workspace.

    Raises:
      UserError: another process prepares this target.
    """
    path = _workspace_path(target)
    if (path / _RETIRED).exists():
        with alone_in(path):
            if target.exists():  # killed after the second rename: only the old version is left
                shutil.rmtree(path, ignore_errors=True)
            _undo_half_publication(target, path)


def _workspace_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.preparing")


def _claim(path: Path, identity: str) -> None:
    """Remove the stages of another identity."""
    file = path / _IDENTITY
    if file.is_file() and file.read_text() == identity:
        return
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    file.write_text(identity)


def _undo_half_publication(target: Path, path: Path) -> None:
    """Undo the first of the two renames of `Workspace.publish` unless the second has happened."""
    if (path / _RETIRED).exists() and not target.exists():
        (path / _RETIRED).rename(target)

"""The temporary directory of a dataset's writer: one process at a time, in stages that survive a kill.

Every command that changes a dataset opens its workspace first: prepare, append, compact, and undoing an
append. So two of them never work on one dataset, and what they read there is what they change.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import LOCK_FILE, alone_in, remove_lock
from rec2pm_jax.os_errors import check_path, write_error

_IDENTITY = "identity.json"
_RETIRED = "retired"


class Workspace:
    """The directory `<target>.preparing`, on the disk of the target.

    Because they share a disk, the result can be renamed into place.

    Attributes:
      target: the dataset.
      path: the directory.
      claimed: whether `claim` has been called.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(f"{target.name}.preparing")
        self.claimed = False

    def claim(self, identity: dict) -> None:
        """Keep the finished stages of an earlier start with the same identity, and remove others.

        Args:
          identity: the options and input files that determine the result; JSON.
        """
        text = json.dumps(identity, sort_keys=True)
        file = self.path / _IDENTITY
        self.claimed = True
        if file.is_file() and file.read_text() == text:
            return
        self.remove_stages()
        file.write_text(text)

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
        if self.target.exists():
            self.target.rename(self.path / _RETIRED)
        stage.rename(self.target)

    def restore_target(self) -> None:
        """Finish or undo a publication that a kill left between its two renames."""
        retired = self.path / _RETIRED
        if not retired.exists():
            return
        if self.target.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(self.target)

    def remove_stages(self) -> None:
        """Remove everything but the lock."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK_FILE:
                entry.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory, the lock file last, unless it holds the stages of another command."""
        if self.claimed:
            self.remove_stages()
        remove_lock(self.path)


@contextmanager
def open_workspace(target: Path, identity: dict | None = None) -> Iterator[Workspace]:
    """Open the workspace of a dataset.

    Success and errors remove the workspace. A kill or an interrupt leaves it, and the next start that
    claims the same identity uses its finished stages. A start with another identity removes them.

    Args:
      target: the dataset to write. Two paths of one directory share a workspace.
      identity: as for `Workspace.claim`; None: nothing is claimed yet.

    Yields:
      The workspace.

    Raises:
      UserError: another process writes this dataset, or the disk is full or read-only.
    """
    check_path(target)
    target = Path(os.path.realpath(target))
    if not target.name:
        raise UserError(f"{target} cannot be a dataset; choose a directory below it.")
    space = Workspace(target)
    with alone_in(space.path, f"The dataset {target}"):
        try:
            space.restore_target()
            if identity is not None:
                space.claim(identity)
            yield space
        except OSError as error:
            space.restore_target()
            space.remove()
            reason = str(write_error(target, error))
            if error.filename and not str(error.filename).startswith(str(target)):  # an input file
                reason = f"{error.filename}: {error.strerror}."
            raise UserError(
                f"{reason} Nothing was changed in {target} and the temporary files are removed."
            ) from error
        except MemoryError as error:
            space.remove()
            raise UserError(
                f"Not enough memory to write {target} ({error}); lower --max_memory or the sizes asked "
                "for. Nothing was changed in it."
            ) from error
        except Exception:
            # The stages of a refused input are of no use. A kill or ^C does not come here.
            space.remove()
            raise
        space.remove()

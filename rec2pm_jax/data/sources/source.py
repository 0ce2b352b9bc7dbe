"""What the registry knows of a dataset: what it is, its licence, how to get it, what reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from rec2pm_jax.data.columns import UNREADABLE
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources import tables
from rec2pm_jax.data.sources.download import Download, fetch
from rec2pm_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Source:
    """One row of the registry.

    Attributes:
      name: value of --source.
      description: one line.
      licence: what its publisher allows, and whether downloading needs an agreement.
      load: reads `options.input` into canonical interactions.
      page: where a person finds the data and its terms; "" for sources that need none.
      files: what --input is expected to be, e.g. "DIR with ratings.csv"; "" where `load` checks it.
      variants: values of --variant that `downloads` knows; empty where there is nothing to choose.
      downloads: variant -> files that may be fetched without asking anybody; None: by hand only.
      by_hand: how to fetch the files by hand, where `page` does not say it all.
      example: flags of a typical command, after --source.
      optional_input: `load` works without an input.
    """

    name: str
    description: str
    licence: str
    load: Callable[[PrepareOptions], Interactions]
    page: str = ""
    files: str = ""
    variants: tuple[str, ...] = ()
    downloads: Callable[[str], tuple[Download, ...]] | None = None
    by_hand: str = ""
    example: str = ""
    optional_input: bool = False

    def __call__(self, options: PrepareOptions) -> Interactions:
        """Reads the data, after fetching it where that was asked for; UserError for bad input."""
        options = self.with_input(options)
        try:
            return self.load(options)
        except UNREADABLE as error:
            raise tables.unreadable(options.input or self.name, error) from error

    @property
    def _choices(self) -> str:
        some = ", ".join(self.variants[:4])
        return some if len(self.variants) <= 4 else f"{some}, .. ({len(self.variants)} in all)"

    def missing(self, what: str) -> UserError:
        """An error that says what is missing, where it comes from and under which licence."""
        ways = []
        if self.downloads:
            ways.append(f"add --variant ({self._choices}) and --download_dir=DIR to download it")
        ways.append(f"{self.by_hand or f'fetch it from {self.page}'} and give --input={self.files}")
        return UserError(f"{what} To get it, {'; or '.join(ways)}. Licence: {self.licence}")

    def with_input(self, options: PrepareOptions) -> PrepareOptions:
        """Options whose `input` exists: as given, or downloaded into `options.download_dir`.

        Raises:
          UserError: no input and no way to get it, an unknown variant, or a failed download.
        """
        if options.variant and not self.variants:
            raise UserError(f"--variant={options.variant}: {self.name} has no variants.")
        if options.variant and options.input:
            raise UserError("--variant chooses a download; leave it out, or --input.")
        if options.input:
            if self.files and not Path(options.input).exists():
                raise self.missing(f"--input={options.input} does not exist.")
            return options
        if not self.files or self.optional_input:
            return options
        if not options.download_dir or self.downloads is None:
            raise self.missing(f"--source={self.name} needs --input.")
        if options.variant not in self.variants:
            raise UserError(
                f"--variant={options.variant} is unknown for {self.name}; choose {self._choices}."
                f"{nearest(options.variant, self.variants)}"
            )
        directory = Path(options.download_dir) / self.name / options.variant.replace("/", "_")
        print(f"{self.name} {options.variant}: {self.licence} See {self.page}", flush=True)
        for item in self.downloads(options.variant):
            fetch(item, directory, self.page, options.progress)
        return dataclasses.replace(options, input=str(directory))

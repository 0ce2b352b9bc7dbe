"""An entry of the registry: what a dataset is, its licence, how to get it and how to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.polars_io import READ_ERRORS
from rec2pm_jax.data.reading.download import Download, fetch
from rec2pm_jax.data.reading.log_files import unreadable_error
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError, nearest


def choose_item_level(options: PrepareOptions, levels: Collection[str]) -> str:
    """Return what an item is: `options.item`, or the first level if that is empty.

    Raises:
      UserError: the source has no such level.
    """
    level = options.item or next(iter(levels))
    if level not in levels:
        raise UserError(
            f"--item={level} is unknown for {options.source}; choose one of {', '.join(levels)}."
            f"{nearest(level, levels)}"
        )
    return level


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset that `launch.prepare` can read.

    Attributes:
      name: value of --source.
      description: one line.
      licence: what its publisher allows, and whether downloading needs an agreement.
      load: reads `options.input` into canonical interactions.
      page: where to find the data and its terms; "" for sources without a page.
      files: what --input should be, for example "DIR with ratings.csv"; "" where `load` checks it.
      variants: values of --variant that `downloads` knows; empty without a choice.
      downloads: variant -> files that may be fetched without an agreement; None: by hand only.
      by_hand: how to fetch the files by hand, if `page` alone does not explain it.
      example: flags of a typical command, after --source.
      optional_input: whether `load` works without an input.
      beside: patterns of files that `load` reads beside a file; {stem} is the name of that file.
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
    beside: tuple[str, ...] = ()

    def __call__(self, options: PrepareOptions) -> Interactions:
        """Read the data, after downloading it if the options ask for that.

        Raises:
          UserError: no input, bad input, or a failed download.
        """
        options = self.find_input(options)
        try:
            return self.load(options)
        except READ_ERRORS as error:
            raise unreadable_error(options.input or self.name, error) from error

    def describe(self) -> str:
        """Return a few lines for a terminal: what it is, how to get it, its licence, an example."""
        command = f"python -m launch.prepare --source={self.name} {self.example}"
        lines = {
            "get": "downloads with --download_dir=DIR" if self.downloads else self.by_hand,
            "licence": self.licence,
            "page": self.page,
            "example": f"{command.strip()} --output_dir=data/{self.name}",
        }
        details = "".join(f"\n  {label:<9}{text}" for label, text in lines.items() if text)
        return f"{self.name}: {self.description}{details}"

    @property
    def _choices(self) -> str:
        some = ", ".join(self.variants[:4])
        return some if len(self.variants) <= 4 else f"{some}, .. ({len(self.variants)} in all)"

    def missing_error(self, what: str) -> UserError:
        """Return an error that states what is missing, where to get it and under which licence."""
        ways = []
        if self.downloads:
            ways.append(f"add --variant ({self._choices}) and --download_dir=DIR to download it")
        ways.append(f"{self.by_hand or f'fetch it from {self.page}'} and give --input={self.files}")
        return UserError(f"{what} To get it, {'; or '.join(ways)}. Licence: {self.licence}")

    def find_input(self, options: PrepareOptions) -> PrepareOptions:
        """Return options whose `input` exists: as given, or downloaded to `options.download_dir`.

        Raises:
          UserError: no input and no way to get it, an unknown variant, or a failed download.
        """
        if options.variant and not self.variants:
            raise UserError(f"--variant={options.variant}: {self.name} has no variants.")
        if options.variant and options.input:
            raise UserError("--variant chooses a download; leave it out, or --input.")
        if options.input:
            if self.files and not Path(options.input).exists():
                raise self.missing_error(f"--input={options.input} does not exist.")
            return options
        if not self.files or self.optional_input:
            return options
        if not options.download_dir or self.downloads is None:
            raise self.missing_error(f"--source={self.name} needs --input.")
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

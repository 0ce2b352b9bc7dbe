"""Print all fields of the configuration as Markdown, or write them into a page.

    python -m launch.list_fields
    python -m launch.list_fields --page=docs/training.md

The page holds the list between the markers `<!-- config fields: generated -->` and `<!-- end -->`.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.config import Config
from rec2pm_jax.config_fields import replace_section, to_markdown
from rec2pm_jax.errors import UserError

flags.DEFINE_string("page", "", "Markdown page to write the list into; empty: print it.")


def main(_: list[str]) -> None:
    markdown = to_markdown(Config())
    if not flags.FLAGS.page:
        print(markdown)
        return
    page = Path(flags.FLAGS.page)
    if not page.is_file():
        raise UserError(f"--page={page}: there is no such file.")
    try:
        page.write_text(replace_section(page.read_text(), markdown))
    except ValueError as error:
        raise UserError(f"--page={page}: {error}.") from error
    print(f"written to {page}")


if __name__ == "__main__":
    cli.run(main)

"""Write the generated tables of README.md, docs/results.md and docs/performance.md from the records.

    python -m launch.experiments.publish
    python -m launch.experiments.publish --check    # exit code 1 if a page is out of date

A page names each table in a comment, and everything up to the closing comment is generated:

    <!-- table: main-types -->
    <!-- /table -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags

from launch.experiments import result_tables, speed_tables
from rec2pm_jax import cli
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.json_file import replaced_file

_TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def fill(text: str, tables: Mapping[str, Callable[[], list[str]]]) -> str:
    """Return a page with its tables generated from the records.

    Args:
      text: the page.
      tables: name -> function that returns the lines of a table.

    Raises:
      UserError: the page names an unknown table, or a table without an end.
    """
    opened, closed = text.count("<!-- table:"), len(_TABLE.findall(text))
    if opened != closed:
        raise UserError(f"{opened} tables begin with <!-- table: NAME -->, {closed} are closed.")

    def generate(found: re.Match[str]) -> str:
        start, name, _, end = found.groups()
        if name not in tables:
            raise UserError(f"There is no table {name}.{nearest(name, tables)}")
        return "\n".join([start, *tables[name](), "", end])

    return _TABLE.sub(generate, text)


def generate_pages(results: Path, root: Path) -> dict[Path, str]:
    """Return the text of each page with its tables as the records have them.

    Args:
      results: directory of the records; those of speed are in `speed/`.
      root: directory of README.md and docs/.
    """
    accuracy = result_tables.list_tables(results)
    tables = {
        "README.md": accuracy,
        "docs/results.md": accuracy,
        "docs/performance.md": speed_tables.list_tables(results / "speed"),
    }
    return {root / page: fill((root / page).read_text(), tables[page]) for page in tables}


def main(_) -> None:
    args = flags.FLAGS
    pages = generate_pages(Path(args.results), Path(args.root))
    stale = [path for path, text in pages.items() if path.read_text() != text]
    if args.check and stale:
        raise UserError(
            f"out of date: {', '.join(map(str, stale))}; run python -m launch.experiments.publish"
        )
    for path in stale:
        with replaced_file(path) as temporary:
            temporary.write_text(pages[path])
        print(f"written: {path}")


if __name__ == "__main__":
    flags.DEFINE_string("results", "results", "Directory of the records.")
    flags.DEFINE_string("root", ".", "Directory of README.md and docs/.")
    flags.DEFINE_boolean("check", False, "Only say whether the pages are up to date.")
    cli.run(main)

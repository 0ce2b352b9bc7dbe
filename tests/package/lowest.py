"""Print the lowest versions that requirements.txt and some extras allow, as constraints for pip.

python tests/package/lowest.py test > constraints.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
_REQUIREMENT = re.compile(r"(?P<name>[\w-]+)(?:\[(?P<extras>[\w,]+)\])?(?:>=(?P<floor>[\w.]+))?$")


def requirements(extra: str) -> list[str]:
    """Return the requirements of an extra, those of the extras it names included; "" is the core."""
    if not extra:
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        return [line.split("#")[0].strip() for line in lines if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for requirement in project["optional-dependencies"][extra]:
        match = _REQUIREMENT.match(requirement)
        if match and match["name"] == project["name"]:
            found += [r for name in match["extras"].split(",") for r in requirements(name)]
        else:
            found.append(requirement)
    return found


def constraints(extras: list[str]) -> list[str]:
    """Return `name==floor` for every requirement of the core and of `extras`.

    Raises:
      ValueError: a requirement has no floor.
    """
    lines = []
    for requirement in [r for extra in ["", *extras] for r in requirements(extra)]:
        match = _REQUIREMENT.match(requirement)
        if not match or not match["floor"]:
            raise ValueError(f"{requirement!r} needs the form NAME>=VERSION, its lowest version.")
        lines.append(f"{match['name']}=={match['floor']}")
    return lines


if __name__ == "__main__":
    print("\n".join(constraints(sys.argv[1:])))

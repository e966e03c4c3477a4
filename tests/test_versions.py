"""The tested versions (``[tool.uv]``) and the lowest ones (``tests/lowest.txt``) agree with ``pyproject.toml``."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared(*, extras: bool) -> list[Requirement]:
    """The direct dependencies: of users and of developers, and of the extras on request."""
    lists = [PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values()]
    lists += PROJECT["project"]["optional-dependencies"].values() if extras else []
    return [Requirement(line) for names in lists for line in names]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def exact(lines: list[str]) -> dict[str, list[Version]]:
    """Versions by package; several where Python versions differ. Each line is ``name==version`` and a marker."""
    found: dict[str, list[Version]] = {}
    for line in lines:
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==" and requirement.url is None, line  # no hosts
        found.setdefault(canonical(requirement.name), []).append(Version(pin.version))
    return found


def lowest() -> dict[str, list[Version]]:
    lines = (Path(__file__).with_name("lowest.txt")).read_text().splitlines()
    return exact([line for line in lines if line and not line.startswith("#")])


def test_every_tested_version_is_allowed() -> None:
    tested = exact(PROJECT["tool"]["uv"]["constraint-dependencies"])
    for requirement in declared(extras=False):
        versions = tested[canonical(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), str(requirement)


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    versions = lowest()
    bounds: dict[str, Version] = {}
    for requirement in declared(extras=True):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", str(requirement)
        name = canonical(requirement.name)
        bounds[name] = max(bounds.get(name, Version("0")), Version(bound.version))
    assert {name: versions[name] for name in bounds} == {name: [bound] for name, bound in bounds.items()}

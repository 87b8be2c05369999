"""Installed packages and their versions, without importing them: a broken package must not stop the check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from kava.machine.settings import Settings, version_numbers


@dataclass(frozen=True)
class Package:
    """`version` is None where the package is not installed; `problem` says why an installed one is refused."""

    name: str
    version: str | None
    required: bool
    minimum: str | None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.version is not None and self.problem is None


def find_packages(settings: Settings, broken: Mapping[str, str]) -> tuple[Package, ...]:
    """The required and optional packages of the settings; `broken` maps those that cannot be imported to the reason."""
    required = settings["dependencies.required"]
    names = list(dict.fromkeys([*required, *settings["dependencies.optional"]]))
    return tuple(_package(name, name in required, settings.minimum(name), broken.get(name)) for name in names)


def _package(name: str, required: bool, minimum: str | None, import_error: str | None) -> Package:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    if not version:  # also a damaged installation without metadata
        return Package(name, None, required, minimum)
    problem = None
    if import_error is not None:
        problem = f"cannot be imported: {import_error}"
    elif minimum is not None and version_numbers(version) < version_numbers(minimum):
        problem = f"needs {minimum} or later"
    return Package(name, version, required, minimum, problem)

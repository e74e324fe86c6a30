"""Profiles, schemas and checks of agents by the seed system's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from flat.agents.bundle import profile_settings
from flat.agents.profiles import Catalogue, read_catalogue, resolve_profile
from flat.errors import SpecError
from flat.runtime.agent_files import InvalidAgent, read_mapping
from flat.runtime.compat.validation import told
from flat.spec.agent import AgentFile
from flat.spec.document import Document
from flat.spec.schema import schema
from flat.spec.shape import check_shape
from flat.spec.sources import Part

ProfilesDict = Mapping[str, Any]
"""`{"profiles": {…}, "default": name or None, "override": name or None}`."""


class ProfileManager:
    """A catalogue, and what its profiles come to."""

    _instances: ClassVar[dict[Path, ProfileManager]] = {}

    def __init__(self, profiles_dict: ProfilesDict | None = None) -> None:
        self._catalogue = read_catalogue(profiles_dict)

    @classmethod
    def get_instance(cls, config_dir: str | Path) -> ProfileManager:
        """The manager of a folder's `profiles.yml`, read once; empty when there is none."""
        folder = Path(config_dir).expanduser().resolve()
        if folder not in cls._instances:
            cls._instances[folder] = cls(load_profiles_from_file(discover_profiles_file(folder)))
        return cls._instances[folder]

    @classmethod
    def clear_cache(cls) -> None:
        """Forget what was read."""
        cls._instances.clear()

    @property
    def profiles(self) -> dict[str, Any]:
        return {name: dict(profile) for name, profile in self._catalogue.profiles.items()}

    @property
    def default_profile(self) -> str | None:
        return self._catalogue.default

    @property
    def override_profile(self) -> str | None:
        return self._catalogue.override

    def get_profile(self, name: str) -> dict[str, Any] | None:
        """The profile as it is written."""
        found = self._catalogue.profiles.get(name)
        return None if found is None else dict(found)

    def to_dict(self) -> dict[str, Any]:
        """The catalogue in the form in which it is passed around."""
        return profiles_dict_of(self._catalogue)

    def resolve_model_config(self, ref: Any) -> dict[str, Any]:
        """The settings that a reference comes to: a name, settings that may name one, or nothing."""
        return resolve_profile(self._catalogue, ref)


def profiles_dict_of(catalogue: Catalogue) -> dict[str, Any]:
    """A catalogue in the form in which it is passed around."""
    profiles = {name: dict(profile) for name, profile in catalogue.profiles.items()}
    return {"profiles": profiles, "default": catalogue.default, "override": catalogue.override}


def discover_profiles_file(config_dir: str | Path, explicit_path: str | Path | None = None) -> Path | None:
    """The named file, which has to be there, else `profiles.yml` in the folder if it is."""
    folder = Path(config_dir)
    if explicit_path is not None:
        path = folder / Path(explicit_path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"Profiles file not found: {path}")
        return path
    beside = folder / "profiles.yml"
    return beside if beside.is_file() else None


def load_profiles_from_file(path: str | Path | None) -> dict[str, Any] | None:
    """A catalogue file in the form in which it is passed around."""
    return None if path is None else profiles_dict_of(read_catalogue(read_mapping(Path(path)).value))


def resolve_profiles_with_fallback(
    own: ProfilesDict | None, parent: ProfilesDict | None
) -> ProfilesDict | None:
    """The own catalogue if there is one, else the parent's. They are never merged."""
    return own if own is not None else parent


def load_profile_from_file(profile_file: str | Path) -> dict[str, Any]:
    """The profile that a catalogue file means without further words: its override or default, or its only one."""
    path = Path(profile_file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Profiles file not found: {path}")
    document = read_mapping(path).value
    if document.get("spec") is None:
        raise InvalidAgent(f"Invalid profile spec in {path}: it needs `spec: flatprofile`")
    return profile_settings(document)


def resolve_model_config(
    ref: Any,
    config_dir: str | Path,
    profiles_file: str | Path | None = None,
    profiles_dict: ProfilesDict | None = None,
) -> dict[str, Any]:
    """The settings that a reference comes to; a catalogue given as mapping beats one in a file."""
    if profiles_dict is None and profiles_file is None:
        return ProfileManager.get_instance(config_dir).resolve_model_config(ref)
    found = profiles_dict or load_profiles_from_file(discover_profiles_file(config_dir, profiles_file))
    return ProfileManager(found).resolve_model_config(ref)


def resolve_profile_config(
    profile_ref: Any,
    config_dir: str | Path,
    profiles_file: str | Path | None = None,
    profiles_dict: ProfilesDict | None = None,
) -> dict[str, Any]:
    """What the `profile` of a bundle comes to: a name in the catalogue, or a catalogue of its own."""
    if isinstance(profile_ref, Mapping):
        return profile_settings(profile_ref)
    return resolve_model_config(profile_ref, config_dir, profiles_file, profiles_dict)


def validate_flatagent_config(
    config: Mapping[str, Any], warn: bool = True, strict: bool = False
) -> list[str]:
    """What is wrong with an agent config, as texts. `strict` raises `ValueError` instead, `warn` warns."""
    try:
        _, problems = check_shape(AgentFile, Part(value=config, document=Document(dict(config))))
    except SpecError as error:
        problems = list(error.problems)
    return told("Flatagent", problems, warn=warn, strict=strict)


def get_flatagent_schema() -> dict[str, Any]:
    """The JSON Schema of agent files."""
    return schema("agent")

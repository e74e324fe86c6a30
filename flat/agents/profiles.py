"""Model profiles: a catalogue of named model settings, and how a reference to it is resolved.

Pure functions on parsed mappings; finding and reading the file is the loader's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.errors import SpecError, UnknownName

_SPECS = ("flatprofile", "flatprofiles")
_MANNER = frozenset((
    "temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "seed", "stop", "stream", "stream_options", "timeout",
))  # fmt: skip
"""Settings that say how a model is asked, and mean the same for any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Named profiles. `default` lies under every resolution, `override` on top of it."""

    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default: str | None = None
    override: str | None = None


def read_catalogue(document: Mapping[str, Any] | Catalogue | None) -> Catalogue:
    """A catalogue from a parsed file, with or without its envelope, in either spelling."""
    if isinstance(document, Catalogue):
        return document
    if not document:
        return Catalogue()
    spec = document.get("spec")
    if spec is not None and spec not in _SPECS:
        raise SpecError(f'Invalid profiles spec: expected "flatprofile" or "flatprofiles", got "{spec}"')
    body = document.get("data", document)
    if not isinstance(body or {}, Mapping):
        raise SpecError("the `data` of a profile catalogue is not a mapping")
    body = body or {}
    profiles = body.get("model_profiles") or body.get("profiles") or {}
    for name, profile in profiles.items():
        if not isinstance(profile, Mapping):
            raise SpecError(f'profile "{name}" is not a mapping')
    return Catalogue(profiles=profiles, default=body.get("default"), override=body.get("override"))


def check_catalogue(catalogue: Catalogue) -> list[str]:
    """Names in `default` and `override` that no profile has."""
    found = []
    for key in ("default", "override"):
        name = getattr(catalogue, key)
        if name and name not in catalogue.profiles:
            found.append(f"`{key}`: {UnknownName('model profile', name, catalogue.profiles)}")
    return found


def resolve_profile(catalogue: Catalogue, reference: Any = None, *, compat: bool = False) -> dict[str, Any]:
    """The settings for a reference: a profile's name, or settings that may name one under `profile`.

    Later layers win key by key: the default profile, the named one, the reference's own keys that are not
    null, the override. With `compat`, an unknown name falls back to the default profile.
    """
    named: Any = reference if isinstance(reference, str) else None
    own: Mapping[str, Any] = reference if isinstance(reference, Mapping) else {}
    if own:
        named = own.get("profile")
        own = _flatten({k: v for k, v in own.items() if k != "profile"})
    layers: list[Mapping[str, Any]] = []
    if named:
        if named in catalogue.profiles:
            layers.append(_flatten(catalogue.profiles[named]))
        elif not (compat and catalogue.default in catalogue.profiles):
            raise UnknownName("model profile", str(named), catalogue.profiles)
    layers.append({k: v for k, v in own.items() if v is not None})
    if catalogue.override:
        if catalogue.override not in catalogue.profiles:
            raise UnknownName("model profile", catalogue.override, catalogue.profiles)
        layers.append(_flatten(catalogue.profiles[catalogue.override]))
    return _merge(_default_layer(catalogue, layers), layers)


def named_instead(reference: Any, name: str, profile: Mapping[str, Any]) -> Any:
    """What refers to this profile in place of whatever a reference names, or says in full.

    What the reference sets beside a name stays if it says how a model is asked. What says where, and by which key, goes
    with the profile or the model that it belongs to.
    """
    if not isinstance(reference, Mapping) or "spec" in reference or profile.get("type") not in (None, "llm"):
        return name
    kept = {k: v for k, v in _flatten(reference).items() if k in _MANNER}
    return {**kept, "profile": name} if kept else name


def model_name(config: Mapping[str, Any]) -> str | None:
    """The full name of the model: its provider in front, unless the name holds it already."""
    provider, name = config.get("provider"), config.get("name")
    if not name or not provider or f"{provider}/" in name or f"{provider}:" in name:
        return name
    return f"{provider}/{name}"


def _default_layer(catalogue: Catalogue, layers: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The default profile, unless another kind is wanted: a command line has no use for a temperature."""
    base = _flatten(catalogue.profiles.get(catalogue.default or "", {}))
    wanted = next((layer["type"] for layer in reversed(layers) if "type" in layer), None)
    return base if wanted == base.get("type") or not any(layers) else {}


def _merge(base: Mapping[str, Any], layers: list[Mapping[str, Any]]) -> dict[str, Any]:
    merged = dict(base)
    for layer in layers:
        merged.update(layer)
    return merged


def _flatten(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Model settings without the `type: llm` and `model: {…}` wrapping; other kinds keep their type."""
    if profile.get("type") not in (None, "llm"):
        return dict(profile)
    model = profile.get("model")
    inner = model if isinstance(model, Mapping) else profile
    return {k: v for k, v in inner.items() if k != "type"}

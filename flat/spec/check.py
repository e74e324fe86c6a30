"""Everything about a machine that can be known before it runs, apart from the shape of its mappings.

It reads the plain data, not the models: a file with a misspelt key is also told about its dead transitions.
Texts (templates, conditions, secrets) are checked in `check_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flat.errors import Location, Problem, did_you_mean, nearest
from flat.spec.base import SPEC_VERSION
from flat.spec.check_text import TextChecks
from flat.spec.document import Document, Step, mapping
from flat.spec.machine import Backends, Persistence, Settings
from flat.spec.sources import AgentSource, CatalogueSource, MachineSource, Part

FORGIVEN = frozenset(
    {
        "dead-end",
        "duplicate-key",
        "item-name",
        "key",
        "undefined-name",
        "unknown-agent",
        "unknown-backend",
        "unknown-machine",
        "unknown-profile",
        "unknown-state",
    }
)
"""What upstream passes over: a warning under `compat`."""

_NEEDS = (
    ("execution", ("agent",), "agent"),
    ("tool_loop", ("agent",), "agent"),
    ("session_id", ("agent",), "agent"),
    ("input", ("agent", "machine", "foreach"), "agent or machine"),
    ("launch_input", ("launch",), "launch"),
    ("as", ("foreach",), "foreach"),
    ("key", ("foreach",), "foreach"),
)
"""Fields of a state that do nothing without one of some others, and the words for those."""

_VERSION = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.\d+)*(?:[-+][\w.+-]*)?\Z")
_SETTINGS = tuple(Settings.model_fields)
_PERSISTENCE = tuple(Persistence.model_fields)
_BACKENDS: Mapping[str, tuple[str, ...]] = {
    "persistence": ("memory", "local", "sqlite", "redis", "postgres", "s3", "dynamodb"),
    "locking": ("none", "local", "sqlite", "redis", "consul", "dynamodb", "postgres"),
    "results": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "registration": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "work": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "signal": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "trigger": ("none", "file", "socket", "redis", "postgres"),
}
"""What `settings.backends` may name; each may also be given by its URL."""
_CHECKPOINTS = (
    "machine_start", "state_enter", "execute", "tool_call", "waiting", "state_exit", "machine_end",
)  # fmt: skip
_MODEL = (
    "name", "provider", "profile", "temperature", "max_tokens", "top_p", "top_k", "frequency_penalty",
    "presence_penalty", "seed", "base_url", "stream", "stream_options", "backend", "api", "oauth", "type",
    "model", "timeout", "max_retries", "num_retries", "api_key", "api_base", "reasoning_effort", "extra_body",
    "drop_params", "tool_choice", "stop", "n", "top_logprobs", "logprobs", "user", "response_format",
    "headers", "min_p", "extra_headers", "max_completion_tokens", "api_version", "parallel_tool_calls",
)  # fmt: skip
"""Known keys of open mappings: keys very near to one of them are probably misspelt."""


RUNNER_KEYS: Mapping[str, tuple[str, ...]] = {
    "flatagent": (),
    "claude-code": (
        "claude_bin", "model", "permission_mode", "dangerously_skip_permissions", "add_dirs", "system_prompt",
        "append_system_prompt", "tools", "mcp_config", "max_budget_usd", "effort", "working_dir", "timeout",
        "max_continuations", "exit_sentinel", "continuation_prompt", "rate_limit_delay", "rate_limit_jitter",
    ),
    "codex-cli": (
        "codex_bin", "model", "sandbox", "approval_policy", "dangerously_bypass_approvals_and_sandbox",
        "reasoning_effort", "output_schema", "add_dirs", "skip_git_repo_check", "ephemeral", "search",
        "config_overrides", "feature_enable", "feature_disable", "working_dir", "timeout", "rate_limit_delay",
        "rate_limit_jitter", "use_app_server", "session_source",
    ),
    "smolagents": (),
    "pi-agent": ("runner", "node", "cwd", "env", "timeout", "agent_config", "config"),
}  # fmt: skip
"""Built-in types of agents, and the keys that their settings may have; none where they are the user's own."""


def check_machine(source: MachineSource) -> list[Problem]:
    """All problems of a loaded machine, errors and warnings, in file order."""
    found = check_document(source.document, source.agents, source.catalogue, source.compat)
    return sorted(found, key=lambda problem: (_place(problem), problem.code))


def _place(problem: Problem) -> tuple[str, int, int]:
    at = problem.location
    return (at.file, at.line, at.column) if at else ("", 0, 0)


def check_document(
    document: Document,
    agents: Mapping[str, AgentSource],
    catalogue: CatalogueSource | None,
    compat: bool,
) -> list[Problem]:
    """The problems of a machine's document, in no particular order."""
    checks = _Checks(document, agents, catalogue)
    checks.run()
    if not compat:
        return checks.problems
    return [replace(p, severity="warning") if p.code in FORGIVEN else p for p in checks.problems]


class _Checks:
    """One pass over one machine."""

    def __init__(
        self, document: Document, agents: Mapping[str, AgentSource], catalogue: CatalogueSource | None
    ) -> None:
        self.data = Part(value=mapping(document.get(("data",))), document=document, path=("data",))
        self.agents = agents
        self.catalogue = catalogue
        self.problems: list[Problem] = []
        self.states: Mapping[str, Mapping[str, Any]] = {
            name: mapping(state) for name, state in mapping(self.data.value.get("states")).items()
        }

    def run(self) -> None:
        self._version()
        if self._has_states():
            self._initial()
            for name, state in self.states.items():
                self._state(name, state)
            self._reachable()
        self._near_misses(("settings",), _SETTINGS)
        self._near_misses(("settings", "backends"), tuple(Backends.model_fields))
        self._near_misses(("persistence",), _PERSISTENCE)
        self._storage()
        self._catalogue()
        for agent in self.agents.values():
            self._agent(agent)
        self.problems += TextChecks(self.data, self.states, self.agents, self.catalogue).run()
        self._unheard()

    def _say(
        self,
        code: str,
        said: str,
        path: tuple[Step, ...],
        hint: str = "",
        *,
        warn: bool = False,
        key: bool = False,
    ) -> None:
        place = self.data.locate(*path, key=key)
        if place is None and path:
            said = f"{'.'.join(map(str, ('data', *path)))}: {said}"
        self.problems.append(Problem(code, said, place, hint, "warning" if warn else "error"))

    def _version(self) -> None:
        """Warn of a version that no file of this kind has had so far."""
        document, path = self.data.document, ("spec_version",)
        if (named := document.get(path)) is None:
            return
        version = _VERSION.match(str(named))
        if version and (int(version[1]), int(version[2] or 0)) <= (4, 2):
            return
        said = f'spec_version "{named}" is ' + ("newer than what is known here" if version else "no version")
        place = document.locate(path)
        self.problems.append(
            Problem("version", said, place, f"the newest one known is {SPEC_VERSION}", "warning")
        )

    def _has_states(self) -> bool:
        states = self.data.value.get("states")
        if states is not None and not isinstance(states, Mapping):
            return False
        data = self.data.document.get(("data",))
        if not self.states and isinstance(data, Mapping) and not _misspells(data, "states"):
            path = ("states",) if "states" in data else ()
            hint = "add at least one under data.states"
            self._say("no-states", "the machine has no states", path, hint, key=True)
        return bool(self.states)

    def _initial(self) -> None:
        marked = [name for name, state in self.states.items() if state.get("type") == "initial"]
        for name in marked[1:]:
            said = f'"{name}" is a second initial state; "{marked[0]}" is the first'
            self._say("initial", said, ("states", name, "type"), "a run begins in one place: keep one")

    def _state(self, name: str, state: Mapping[str, Any]) -> None:
        self._targets(name, state)
        self._names(name, state)
        final = state.get("type") == "final"
        transitions = state.get("transitions")
        if self.data.document.get(("data", "states", name)) is not None:
            self._ends(name, state, final, transitions)
        for field, others, words in _NEEDS:
            if state.get(field) and not any(state.get(other) for other in others):
                said = f'"{field}" does nothing in this state, which has no {words}'
                self._say("unused", said, ("states", name, field), warn=True, key=True)
        if state.get("output") and not final:
            hint = "to keep a value, use output_to_context"
            self._say("unused", '"output" is only used in a final state', ("states", name, "output"), hint,
                      warn=True, key=True)  # fmt: skip
        if isinstance(channel := state.get("wait_for"), str) and not channel.strip():
            self._say(
                "missing", "wait_for is empty", ("states", name, "wait_for"), "name the signal's channel"
            )
        self._machines(name, state)
        if state.get("foreach") and not state.get("machine"):
            self._say("foreach", '"foreach" needs a "machine" to run', ("states", name, "foreach"), key=True)

    def _unheard(self) -> None:
        """Warn of actions that no hooks can run, unless Python brings some."""
        if self.data.value.get("hooks"):
            return
        for name, state in self.states.items():
            action = state.get("action")
            if action and not state.get("hooks") and state.get("wait_for") is None:
                said = f'nothing runs the action "{action}": neither the state nor the machine names hooks'
                hint = "add hooks: NAME to the state or the machine, or give them in Python: hooks=…"
                self._say("unheard-action", said, ("states", name, "action"), hint, warn=True)

    def _machines(self, name: str, state: Mapping[str, Any]) -> None:
        """Warn of entries of `machine` that are never run."""
        entries = _list(state.get("machine"))
        names = [mapping(entry).get("name") if isinstance(entry, Mapping) else entry for entry in entries]
        for index, machine in enumerate(names):
            path = ("states", name, "machine", index)
            if index and state.get("foreach"):
                hint = "make a machine that runs them all, and name that"
                self._say("unused", "foreach runs the first machine only", path, hint, warn=True)
            elif machine in names[:index] and isinstance(machine, str):
                said = f'"{machine}" is named before; results are kept by name, so it runs once'
                hint = "give it a second name under data.machines"
                self._say("unused", said, path, hint, warn=True)

    def _ends(self, name: str, state: Mapping[str, Any], final: bool, transitions: Any) -> None:
        if final and transitions:
            said = f'the final state "{name}" has transitions, which are never taken'
            self._say("final-transitions", said, ("states", name, "transitions"), warn=True, key=True)
        elif not final and not transitions and not _misspells(state, "transitions"):
            hint = "add transitions, or `type: final`"
            said = f'the state "{name}" has no transitions and is not final: a run would be stuck in it'
            self._say("dead-end", said, ("states", name), hint, key=True)

    def _targets(self, name: str, state: Mapping[str, Any]) -> None:
        """Whether every target is a state, and every transition can be taken."""
        certain = False
        for index, transition in enumerate(_list(state.get("transitions"))):
            path = ("states", name, "transitions", index)
            if not isinstance(transition, Mapping):
                continue
            if certain:
                said = "this transition is never reached: the one before it is always taken"
                self._say("dead-transition", said, path, warn=True)
            condition = transition.get("condition")
            certain = certain or condition is None or (isinstance(condition, str) and not condition.strip())
            self._target(transition.get("to"), (*path, "to"))
        on_error = state.get("on_error")
        self._target(on_error, ("states", name, "on_error"))
        for failure, target in mapping(on_error).items():
            self._target(target, ("states", name, "on_error", failure))

    def _target(self, target: Any, path: tuple[Step, ...]) -> None:
        if target == "" and path[2] == "on_error":
            self._say("missing", "on_error is empty", path, "name the state to go to, or leave it out")
        elif isinstance(target, str) and target and target not in self.states:
            self._say("unknown-state", f'there is no state "{target}"', path, self._near(target, self.states))

    def _near(self, name: str, known: Iterable[str]) -> str:
        """A suggestion; none when there are so many problems that finding it would take long."""
        return did_you_mean(name, known) if len(self.problems) < 100 else ""

    def _names(self, name: str, state: Mapping[str, Any]) -> None:
        agents = mapping(self.data.value.get("agents"))
        machines = mapping(self.data.value.get("machines"))
        self._known("agent", state.get("agent"), agents, ("states", name, "agent"))
        for field in ("machine", "launch"):
            value = state.get(field)
            self._known("machine", value, machines, ("states", name, field))
            for index, entry in enumerate(_list(value)):
                path = ("states", name, field, index)
                if isinstance(entry, Mapping):
                    self._known("machine", entry.get("name"), machines, (*path, "name"))
                else:
                    self._known("machine", entry, machines, path)

    def _known(self, kind: str, name: Any, known: Mapping[str, Any], path: tuple[Step, ...]) -> None:
        if isinstance(name, str) and name not in known:
            hint = self._near(name, known) or f"add it under data.{kind}s"
            self._say(f"unknown-{kind}", f'there is no {kind} "{name}"', path, hint)

    def _reachable(self) -> None:
        """Warn of states that nothing leads to, unless a wrong target may have been meant to."""
        if any(problem.code == "unknown-state" for problem in self.problems):
            return
        seen: set[str] = set()
        ahead = [self._first()]
        while ahead:
            name = ahead.pop()
            if name not in seen and name in self.states:
                seen.add(name)
                state = self.states[name]
                if not _well_formed(state.get("transitions")) or _misspells(state, "transitions"):
                    return
                ahead += _exits(state)
        for name in self.states:
            if name not in seen:
                self._say("unreachable", f'no transition leads to the state "{name}"', ("states", name),
                          warn=True, key=True)  # fmt: skip

    def _first(self) -> str:
        marked = [name for name, state in self.states.items() if state.get("type") == "initial"]
        return marked[0] if marked else "start" if "start" in self.states else next(iter(self.states))

    def _near_misses(self, path: tuple[str, ...], known: tuple[str, ...]) -> None:
        part = Part(
            value=mapping(self.data.document.get((*self.data.path, *path))),
            document=self.data.document,
            path=(*self.data.path, *path),
        )
        self.problems += near_misses(part, known, ".".join(path))

    def _storage(self) -> None:
        """Whether what is said about storage is something that exists."""
        backends = mapping(mapping(self.data.value.get("settings")).get("backends"))
        persistence = mapping(self.data.value.get("persistence"))
        for field, known in _BACKENDS.items():
            self._backend(field, backends.get(field), known, ("settings", "backends", field))
        self._backend(
            "persistence", persistence.get("backend"), _BACKENDS["persistence"], ("persistence", "backend")
        )
        events = _list(persistence.get("checkpoint_on"))
        for index, event in enumerate(events):
            if isinstance(event, str) and event not in _CHECKPOINTS:
                path = ("persistence", "checkpoint_on", index)
                said = f'there is no event "{event}"'
                self._say("unknown-event", said, path, did_you_mean(event, _CHECKPOINTS), warn=True)

    def _backend(self, role: str, named: Any, known: tuple[str, ...], path: tuple[Step, ...]) -> None:
        if isinstance(named, str) and named not in known and ":" not in named:
            said = f'there is no backend "{named}" for {role}'
            self._say("unknown-backend", said, path, did_you_mean(named, known))

    def _agent(self, agent: AgentSource) -> None:
        if agent.type != "flatagent":
            self._typed_agent(agent)
            return
        if agent.file is None:
            return
        field = "model" if agent.shape == "legacy" else "profile"
        part = agent.file
        wanted = agent.model
        path: tuple[Step, ...] = ("data", field)
        if agent.shape == "legacy" and isinstance(wanted, Mapping):
            self.problems += near_misses(
                Part(value=wanted, document=part.document, path=(*part.path, *path)), _MODEL, "model"
            )
            wanted, path = wanted.get("profile"), (*path, "profile")
        if isinstance(wanted, str):
            self._profile(wanted, part.locate(*path))

    def _typed_agent(self, agent: AgentSource) -> None:
        """Types are open, adapters may bring more; so only what looks like a slip is told, as a warning."""
        known = RUNNER_KEYS.get(agent.type)
        if known is None and (meant := nearest(agent.type, tuple(RUNNER_KEYS))):
            said = f'no built-in adapter makes agents of type "{agent.type}"'
            self._say(
                "unknown-agent-type",
                said,
                ("agents", agent.name, "type"),
                f'did you mean "{meant}"?',
                warn=True,
            )
        path = (*self.data.path, "agents", agent.name, "config")
        inline = mapping(self.data.document.get(path))
        parts = [Part(value=inline, document=self.data.document, path=path), *filter(None, [agent.file])]
        for part in parts:
            self.problems += near_misses(part, known or (), f"{agent.type} agents")

    def _profile(self, name: str, place: Location | None) -> None:
        if self.catalogue is None:
            hint = "add a profiles.yml beside the machine"
            said = f'the profile "{name}" cannot be looked up: there is no catalogue'
            self.problems.append(Problem("unknown-profile", said, place, hint, "warning"))
        elif name not in self.catalogue.profiles:
            hint = did_you_mean(name, self.catalogue.profiles)
            self.problems.append(Problem("unknown-profile", f'there is no profile "{name}"', place, hint))

    def _catalogue(self) -> None:
        if self.catalogue is None or not self.catalogue.part.document.file:
            return  # one that a parent hands down was checked where it is written
        for field in ("default", "override"):
            name = getattr(self.catalogue, field)
            if name is not None and name not in self.catalogue.profiles:
                hint = did_you_mean(str(name), self.catalogue.profiles)
                place = self.catalogue.part.locate(field)
                self.problems.append(Problem("unknown-profile", f'there is no profile "{name}"', place, hint))
        part = self.catalogue.part
        for name, profile in self.catalogue.profiles.items():
            kind = profile.get("type", "llm")
            known, words = (_MODEL, "model") if kind == "llm" else (RUNNER_KEYS.get(kind), f"{kind} profiles")
            if known is not None:
                path = (*part.path, "model_profiles", name)
                self.problems += near_misses(
                    Part(value=profile, document=part.document, path=path), (*known, "type", "ref"), words
                )


def near_misses(part: Part, known: tuple[str, ...], words: str) -> list[Problem]:
    """Warnings about keys of an open mapping that look like misspelt known ones."""
    found = []
    for key in part.value:
        if key not in known and len(key) > 3 and (meant := nearest(key, known)) and _similar(key, meant):
            said = f'"{key}" is not a known key of {words}'
            hint = f'did you mean "{meant}"?'
            found.append(Problem("unknown-setting", said, part.locate(key, key=True), hint, "warning"))
    return found


def _similar(key: str, meant: str) -> bool:
    """Near enough for a key that may well be meant as it is: nearly all characters in common."""
    return abs(len(key) - len(meant)) <= 1 and len(set(key) ^ set(meant)) <= 2 and key[0] == meant[0]


def _misspells(keys: Mapping[str, Any], wanted: str) -> bool:
    return wanted not in keys and any(nearest(key, (wanted,)) for key in keys)


def _well_formed(transitions: Any) -> bool:
    if not isinstance(transitions, list):
        return transitions is None
    return all(isinstance(mapping(entry).get("to"), str) and entry["to"] for entry in transitions)


def _exits(state: Mapping[str, Any]) -> Iterator[str]:
    """The states that a state leads to; its transitions are well formed."""
    for transition in state.get("transitions") or ():
        yield transition["to"]
    on_error = state.get("on_error")
    if isinstance(on_error, str):
        yield on_error
    elif on_error:
        yield from (target for target in mapping(on_error).values() if isinstance(target, str))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""From a loaded machine file to a program: which op each field becomes, in which order.

    hooks, entering  hook (enter)        agent              call + strategy
    wait_for         wait                output_to_context  assign
    action           action              hooks, leaving     hook (exit)
    launch           launch              output, final      finish
    machine, foreach children            transitions        branch
    agent, looping   converse            on_error           the node's error target

A field that is absent gives no op. A state that waits for a signal does nothing else: the payload is its output.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from flat.core.condition import Condition, condition_class
from flat.core.hookref import GIVEN, GIVEN_LIFECYCLE, HookRef, HookRefs
from flat.core.ops import (
    Action,
    AnyOp,
    Arm,
    Assign,
    Branch,
    Call,
    ChildCall,
    Children,
    Converse,
    Finish,
    Guardrails,
    Hook,
    Launch,
    Wait,
)
from flat.core.program import END, START, Limits, Node, Program
from flat.core.program_codec import with_digest
from flat.core.strategies import Parsed, Retry, Sample, Single, Strategy, Vote
from flat.core.template import CompiledMapping, Template, compile_value
from flat.errors import Location, Problem, SpecError
from flat.spec.document import mapping
from flat.spec.machine import (
    MachineData,
    ParallelExecution,
    RetryExecution,
    State,
    ToolLoop,
    VotingExecution,
    hooks_calls,
)
from flat.spec.sources import AgentSource, CatalogueSource, ChildSource, MachineSource

DEFAULT_MAX_STEPS = 1000
DEFAULT_AT_ONCE = 100
"""Most children of one state that run at the same time."""
_READS_MACHINE = re.compile(r"\.machine\b|\[\s*['\"]machine")


def lower(source: MachineSource, *, given_hooks: bool = False, given_lifecycle: bool = False) -> Program:
    """The program of a checked machine file.

    With `given_hooks`, an object handed over at load serves the machine and every state without hooks of its own; with
    `given_lifecycle`, one serves the machine's beginning and end alone.
    """
    try:
        return Lowering(source, given_hooks, given_lifecycle).program()
    except orjson.JSONEncodeError as error:  # of a mapping from Python; what a file can hold can be stored
        said = f"a value of the config cannot be stored: {error}"
        raise SpecError(Problem("value", said, None, "write it as text")) from None


class Lowering:
    """What is the same for all states of one file."""

    def __init__(self, source: MachineSource, given_hooks: bool, given_lifecycle: bool = False) -> None:
        self.source = source
        self.data: MachineData = source.machine.data
        self.native = self.data.settings.native_types
        self.lenient = source.compat
        self.shared_hooks = (HookRef(GIVEN),) if given_hooks else _hook_refs(self.data.hooks, "machine")
        own = _hook_refs(self.data.lifecycle_hooks, "machine") or self.shared_hooks
        self.lifecycle = (HookRef(GIVEN_LIFECYCLE),) if given_lifecycle else own
        self.in_doubt = self.data.settings.in_doubt or "retry"

    def program(self) -> Program:
        data = self.data
        lifecycle = self.lifecycle
        nodes = {name: self.node(name, state) for name, state in data.states.items()}
        if self.lenient:
            nodes |= {name: self.node(name, State()) for name in _targets(data) if name not in nodes}
        initial = data.initial
        if lifecycle:
            start = (Hook(point="machine_start", key="machine_start"), Branch(arms=(Arm(None, initial),)))
            end = (Hook(point="machine_end", key="machine_end"), Finish())
            nodes[START] = Node(name=START, ops=start, hooks=lifecycle, virtual=True, error_steered=False)
            nodes[END] = Node(name=END, ops=end, hooks=lifecycle, virtual=True, error_steered=False)
        settings = data.settings
        text = self.source.document.text or repr(self.source.document.value)
        program = Program(
            name=data.name,
            kind="yaml",
            spec_version=self.source.machine.spec_version,
            initial=initial,
            context=self.mapping(data.context, "data", "context"),
            nodes=nodes,
            lifecycle=lifecycle,
            hooks=tuple(dict.fromkeys(node.hooks for node in nodes.values() if node.hooks)),
            limits=Limits(
                max_steps=next(
                    (n for n in (settings.max_steps, data.max_steps) if n is not None), DEFAULT_MAX_STEPS
                ),
                max_depth=settings.max_depth,
            ),
            agents={name: agent_config(agent, self.source) for name, agent in self.source.agents.items()},
            machines={name: self.child(child) for name, child in self.source.machines.items()},
            settings=_kept(data),
            uses_machine=_READS_MACHINE.search(text) is not None,
        )
        return with_digest(program)

    # -- one state ------------------------------------------------------------------

    def node(self, name: str, state: State) -> Node:
        hooks = _hook_refs(state.hooks, name) or self.shared_hooks
        ops = list(self.ops(name, state))
        if hooks:
            ops.insert(0, Hook(point="state_enter", key="enter"))
            leaving = next(i for i, op in enumerate(ops) if isinstance(op, Branch | Finish))
            ops.insert(leaving, Hook(point="state_exit", key="exit"))
            ops = [_steered(op) for op in ops]
        return Node(
            name=name,
            ops=tuple(ops),
            on_error=state.error_targets,
            hooks=hooks,
            timeout=float(state.timeout) if state.timeout else None,
            final=state.type == "final",
        )

    def ops(self, name: str, state: State) -> list[AnyOp]:
        """The ops of a state, the last of which leads out of it."""
        at = ("data", "states", name)
        ops: list[AnyOp] = []
        if state.wait_for is not None:
            ops.append(Wait(channel=self.template(state.wait_for, *at, "wait_for")))
            ops += self.assign(state, at)
        else:
            # The seed system passes over an action that nothing runs.
            unheard = self.lenient and not (state.hooks or self.shared_hooks)
            if state.action is not None and not unheard:
                ops.append(Action(action=state.action, in_doubt=state.in_doubt or self.in_doubt))
            if state.launch_names:
                given = self.mapping(state.launch_input, *at, "launch_input") if state.launch_input else None
                ops.append(Launch(machines=state.launch_names, input=given))
            if state.machine_inputs:
                ops.append(self.children(state, at))
                ops += self.assign(state, at)
            if state.agent is not None:
                asks = self.converse if state.loops else self.call
                ops.append(asks(state.agent, state, at, name))
                # Two ops of a node have two keys.
                ops += [
                    replace(op, key="assign2") if state.machine_inputs else op
                    for op in self.assign(state, at)
                ]
        if state.type == "final":
            output = self.mapping(state.output, *at, "output") if state.output else None
            ops.append(Finish(output=output))
        elif state.transitions:
            ops.append(self.branch(state, at))
            if self.lenient:  # the seed system ends there, empty-handed
                ops.append(Finish(output=self.mapping({}, *at)))
        else:
            ops.append(Finish(output=self.mapping({}, *at)))
        return ops

    def children(self, state: State, at: tuple[str, ...]) -> Children:
        looped = state.foreach is not None
        # In the seed system the name of an item is no path; it is one for machines that keep native types.
        roots = (state.as_,) if looped and self.native else ()
        single = isinstance(state.machine, str) and not looped
        calls = state.machine_inputs[:1] if looped else state.machine_inputs
        at_once = self.data.settings.max_concurrency
        return Children(
            calls=tuple(
                ChildCall(
                    machine=call.name,
                    input=self.mapping(call.input, *at, "machine", i, "input", roots=roots)
                    if call.input
                    else None,
                )
                for i, call in enumerate(calls)
            ),
            input=self.mapping(state.input, *at, "input", roots=roots) if state.input else None,
            single=single,
            foreach=Template(
                state.foreach, self.source.locate(*at, "foreach"), native=True, lenient=self.lenient
            )
            if state.foreach is not None
            else None,
            as_=state.as_,
            item_key=self.template(state.key, *at, "key", roots=roots) if state.key and looped else None,
            mode=state.mode,
            at_once=DEFAULT_AT_ONCE if at_once is None else at_once,
            in_doubt=state.in_doubt or self.in_doubt,
        )

    def child(self, child: ChildSource) -> dict[str, Any]:
        """A child machine as plain data; its file is read when it is first run."""
        if child.tree is not None:
            return {"tree": dict(child.tree)}
        entry: dict[str, Any] = {"compat": True} if self.source.compat else {}
        if self.source.catalogue is not None:
            entry["profiles"] = profiles_data(self.source.catalogue)
        if child.path is not None:
            directory = os.path.realpath(self.source.directory)
            return {"path": Path(os.path.relpath(child.path, directory)).as_posix(), **entry}
        return {"inline": dict(child.inline or {}), **entry}

    def converse(self, agent: str, state: State, at: tuple[str, ...], name: str) -> Converse:
        loop = state.tool_loop if isinstance(state.tool_loop, ToolLoop) else ToolLoop()
        limits = {
            field: self.template(value, *at, "tool_loop", field) if isinstance(value, str) else value or 0
            for field in ("max_turns", "max_tool_calls", "tool_timeout", "total_timeout", "max_cost")
            for value in (getattr(loop, field),)
        }
        hooked = bool(_hook_refs(state.hooks, name) or self.shared_hooks)
        return Converse(
            agent=agent,
            input=self.mapping(state.input, *at, "input") if state.input else None,
            session_id=self.template(state.session_id, *at, "session_id") if state.session_id else None,
            limits=Guardrails(
                **limits,
                allowed=tuple(loop.allowed_tools) if loop.allowed_tools is not None else None,
                denied=tuple(loop.denied_tools or ()),
            ),
            arms=tuple(arm for arm in self.branch(state, at).arms if arm.condition is not None),
            on_calls=hooked,
            on_result=hooked,
            in_doubt=state.in_doubt or self.in_doubt,
        )

    def call(self, agent: str, state: State, at: tuple[str, ...], name: str) -> Call:
        return Call(
            agent=agent,
            input=self.mapping(state.input, *at, "input") if state.input else None,
            session_id=self.template(state.session_id, *at, "session_id") if state.session_id else None,
            strategy=_strategy(state, self.source.agents.get(agent)),
            in_doubt=state.in_doubt or self.in_doubt,
        )

    def assign(self, state: State, at: tuple[str, ...]) -> list[AnyOp]:
        if not state.output_to_context:
            return []
        entries = tuple(
            (key, self.template(value, *at, "output_to_context", key) if isinstance(value, str) else value)
            for key, value in state.output_to_context.items()
        )
        return [Assign(entries=entries)]

    def branch(self, state: State, at: tuple[str, ...]) -> Branch:
        arms = []
        for i, transition in enumerate(state.transitions):
            condition: Condition | None = None
            if transition.condition not in (None, "", True):
                text = transition.condition if isinstance(transition.condition, str) else "false"
                place = self.source.locate(*at, "transitions", i, "condition")
                condition = condition_class(self.data.expression_engine)(text, place)
            arms.append(Arm(condition, transition.to))
        return Branch(arms=tuple(arms), open_ended=self.lenient, interrupted=state.loops)

    # -- templates ------------------------------------------------------------------

    def template(self, text: str, *path: str | int, roots: tuple[str, ...] = ()) -> Template:
        place = self.source.locate(*path)
        return Template(text, place, native=self.native, roots=roots, lenient=self.lenient)

    def mapping(
        self, value: Mapping[str, Any], *path: str | int, roots: tuple[str, ...] = ()
    ) -> CompiledMapping:
        def locate(*inner: str | int) -> Location | None:
            return self.source.locate(*path, *inner)

        compiled: CompiledMapping = compile_value(
            value, locate, native=self.native, roots=roots, lenient=self.lenient
        )
        return compiled


def _kept(data: MachineData) -> dict[str, Any]:
    """What a file says about where its executions are kept."""
    kept: dict[str, Any] = {}
    if data.persistence:
        kept["persistence"] = data.persistence.model_dump(exclude_defaults=True)
    if data.settings.backends is not None:
        kept["backends"] = data.settings.backends.model_dump(exclude_none=True)
    return kept


def _targets(data: MachineData) -> list[str]:
    """Every state that a transition or an `on_error` names, whether it is there or not."""
    named = [t.to for state in data.states.values() for t in state.transitions]
    return list(
        dict.fromkeys([*named, *(to for s in data.states.values() for to in s.error_targets.values())])
    )


def _steered(op: AnyOp) -> AnyOp:
    return replace(op, steered=True) if isinstance(op, Branch) else op


def _strategy(state: State, agent: AgentSource | None) -> Strategy:
    execution = state.execution
    if isinstance(execution, ParallelExecution):
        return Sample(n=execution.n_samples)
    if isinstance(execution, VotingExecution):
        return _vote(execution, {} if agent is None else agent.metadata)
    if isinstance(execution, RetryExecution):
        return Retry(
            backoffs=tuple(execution.backoffs),
            jitter=execution.jitter,
            retry_on_empty=execution.retry_on_empty,
        )
    return Single()


def _vote(execution: VotingExecution, metadata: Mapping[str, Any]) -> Vote:
    """What the agent's own `metadata` says of voting wins over the state's."""
    own = {k: v for k, v in mapping(metadata.get("mdap")).items() if v}
    parsing = mapping(metadata.get("parsing"))
    return Vote(
        k_margin=own.get("k_margin", execution.k_margin),
        max_candidates=own.get("max_candidates", execution.max_candidates),
        max_response_tokens=own.get("max_response_tokens", execution.max_response_tokens),
        parsing=tuple(
            Parsed(field=name, pattern=str(how.get("pattern", "")), type=str(how.get("type") or "str"))
            for name, how in parsing.items()
            if isinstance(how, Mapping)
        ),
        schema=metadata.get("validation"),
    )


def _hook_refs(ref: Any, scope: str) -> HookRefs:
    """4.x: each state that names hooks has an object of its own. 2.5.0: one object serves the whole machine."""
    return tuple(
        HookRef(call.name, orjson.dumps(call.args, option=orjson.OPT_SORT_KEYS).decode(), scope)
        for call in hooks_calls(ref)
    )


def agent_config(agent: AgentSource, source: MachineSource) -> dict[str, Any]:
    """An agent as plain data: all that the agent layer needs, wherever it was written.

    `places` says where each text of the prompt stands, for messages, and `directory` what its paths are relative to;
    they are no part of what the agent does.
    """
    if agent.problem is not None:
        place = f"{agent.problem.location}: " if agent.problem.location else ""
        return {"problem": place + agent.problem.message}
    directory = os.path.realpath(agent.directory)
    if agent.type != "flatagent":
        runners = source.machine.data.settings.agent_runners or {}
        return {
            "name": agent.name,
            "type": agent.type,
            "ref": agent.ref,
            "config": dict(agent.config),
            "directory": directory,
            "machine": source.machine.data.name,
            "settings": {"agent_runners": runners} if runners else {},
            "catalogue": None if source.catalogue is None else profiles_data(source.catalogue),
            "compat": source.compat,
        }
    prompt = dict(agent.prompt.value) if agent.prompt else {}
    config = (
        {"prompt": prompt, "profile": agent.model}
        if agent.shape == "bundle"
        else {**prompt, "model": agent.model}
    )
    places = {}
    for key in ("system", "user", "instruction_suffix", "post_history_instructions"):
        if agent.prompt is not None and key in prompt and (at := agent.prompt.locate_in(key)) is not None:
            places[key] = [at.file, at.line, at.column, at.text, at.width]
    catalogue = source.catalogue
    return {
        "name": agent.label or agent.name,
        "type": agent.type,
        "config": {k: v for k, v in config.items() if v is not None},
        "metadata": dict(agent.metadata),
        "places": places,
        "directory": directory,
        "compat": source.compat,
        "catalogue": None if catalogue is None else profiles_data(catalogue),
    }


def profiles_data(catalogue: CatalogueSource) -> dict[str, Any]:
    """A catalogue as plain data."""
    return {
        "model_profiles": {name: dict(profile) for name, profile in catalogue.profiles.items()},
        "default": catalogue.default,
        "override": catalogue.override,
    }

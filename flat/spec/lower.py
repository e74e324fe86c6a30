"""From a loaded machine file to a program: which op each field becomes, in which order.

    hooks, entering  hook (enter)        agent              call + strategy
    wait_for         wait                output_to_context  assign
    action           action              hooks, leaving     hook (exit)
    launch, machine  launch, children    output, final      finish
    on_error         the node's error target                transitions  branch

A field that is absent gives no op. A state that waits for a signal does nothing else: the payload is its output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from flat.core.condition import Condition
from flat.core.hookref import GIVEN, HookRef, HookRefs
from flat.core.ops import Action, AnyOp, Arm, Assign, Branch, Call, Finish, Hook, Wait
from flat.core.program import END, START, Limits, Node, Program
from flat.core.program_codec import with_digest
from flat.core.strategies import Retry, Single, Strategy
from flat.core.template import CompiledMapping, Template, compile_value
from flat.errors import Location, SpecError
from flat.spec.machine import MachineData, RetryExecution, State, hooks_calls
from flat.spec.sources import AgentSource, MachineSource

DEFAULT_MAX_STEPS = 1000
_READS_MACHINE = re.compile(r"\.machine\b|\[\s*['\"]machine")


def lower(source: MachineSource, *, given_hooks: bool = False) -> Program:
    """The program of a checked machine file.

    With `given_hooks`, an object handed over at load serves the machine and every state without hooks of its own.
    """
    return Lowering(source, given_hooks).program()


class Lowering:
    """What is the same for all states of one file."""

    def __init__(self, source: MachineSource, given_hooks: bool) -> None:
        self.source = source
        self.data: MachineData = source.machine.data
        self.native = self.data.settings.native_types
        self.lenient = source.compat
        self.shared_hooks = (HookRef(GIVEN),) if given_hooks else _hook_refs(self.data.hooks, "machine")
        self.in_doubt = self.data.settings.in_doubt or "retry"

    def program(self) -> Program:
        data = self.data
        lifecycle = _hook_refs(data.lifecycle_hooks, "machine") or self.shared_hooks
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
                max_steps=DEFAULT_MAX_STEPS if settings.max_steps is None else settings.max_steps,
                max_depth=10 if settings.max_depth is None else settings.max_depth,
            ),
            agents={name: agent_config(agent, self.source) for name, agent in self.source.agents.items()},
            settings={"persistence": data.persistence.model_dump(exclude_defaults=True)}
            if data.persistence
            else {},
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
            timeout=self.timeout(name, state),
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
            if state.action is not None:
                ops.append(Action(action=state.action, in_doubt=state.in_doubt or self.in_doubt))
            if state.agent is not None:
                ops.append(self.call(state.agent, state, at))
                ops += self.assign(state, at)
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

    def call(self, agent: str, state: State, at: tuple[str, ...]) -> Call:
        return Call(
            agent=agent,
            input=self.mapping(state.input, *at, "input") if state.input else None,
            session_id=self.template(state.session_id, *at, "session_id") if state.session_id else None,
            strategy=_strategy(state),
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
                condition = Condition(text, self.source.locate(*at, "transitions", i, "condition"))
            arms.append(Arm(condition, transition.to))
        return Branch(arms=tuple(arms), open_ended=self.lenient)

    def timeout(self, name: str, state: State) -> float | None:
        if state.timeout is None or isinstance(state.timeout, int | float):
            return float(state.timeout) if state.timeout else None
        raise SpecError(
            "a state's timeout is a number of seconds; templates are not available here",
            self.source.locate("data", "states", name, "timeout"),
        )

    # -- templates ------------------------------------------------------------------

    def template(self, text: str, *path: str | int) -> Template:
        return Template(text, self.source.locate(*path), native=self.native, lenient=self.lenient)

    def mapping(self, value: Mapping[str, Any], *path: str | int) -> CompiledMapping:
        def locate(*inner: str | int) -> Location | None:
            return self.source.locate(*path, *inner)

        compiled: CompiledMapping = compile_value(value, locate, native=self.native, lenient=self.lenient)
        return compiled


def _targets(data: MachineData) -> list[str]:
    """Every state that a transition or an `on_error` names, whether it is there or not."""
    named = [t.to for state in data.states.values() for t in state.transitions]
    return list(
        dict.fromkeys([*named, *(to for s in data.states.values() for to in s.error_targets.values())])
    )


def _steered(op: AnyOp) -> AnyOp:
    return replace(op, steered=True) if isinstance(op, Branch) else op


def _strategy(state: State) -> Strategy:
    execution = state.execution
    if isinstance(execution, RetryExecution):
        return Retry(
            backoffs=tuple(execution.backoffs),
            jitter=execution.jitter,
            retry_on_empty=execution.retry_on_empty,
        )
    return Single()


def _hook_refs(ref: Any, scope: str) -> HookRefs:
    """4.x: each state that names hooks has an object of its own. 2.5.0: one object serves the whole machine."""
    return tuple(
        HookRef(call.name, orjson.dumps(call.args, option=orjson.OPT_SORT_KEYS).decode(), scope)
        for call in hooks_calls(ref)
    )


def agent_config(agent: AgentSource, source: MachineSource) -> dict[str, Any]:
    """An agent as plain data: all that the agent layer needs, wherever it was written.

    `places` says where each text of the prompt stands, for messages; it is no part of what the agent does.
    """
    if agent.problem is not None:
        return {"problem": str(agent.problem)}
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
        "compat": source.compat,
        "catalogue": None
        if catalogue is None
        else {
            "model_profiles": {name: dict(profile) for name, profile in catalogue.profiles.items()},
            "default": catalogue.default,
            "override": catalogue.override,
        },
    }

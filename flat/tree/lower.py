"""The seam to the engine: a charter as data for the core, and as code for the driver.

`plan` is what a program may hold: per node, plain settings and names. `TreeBinding` is the live Python behind those
names: it makes the request of a model call, and runs tool calls, transitions and commands. Trees, calls and outcomes
cross the seam as plain JSON data, so that any of them can be stored between two effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flat.errors import TreeError
from flat.tree.apply import apply_changes, start_tree
from flat.tree.batch import Batch
from flat.tree.calls import Caller, CallOutcome, ToolCall, machine_input, machine_outcome, run_call
from flat.tree.changes import change_data, change_from_data
from flat.tree.charter import Charter
from flat.tree.commanding import CommandOutcome, perform_command
from flat.tree.description import digest_of
from flat.tree.executor import effective_config
from flat.tree.instance import Instance, get_path, without_calls
from flat.tree.messages import Message, message_data
from flat.tree.node import Node
from flat.tree.prompt import SystemPrompt, system_prompt
from flat.tree.refs import serialize_instance, shared_data
from flat.tree.request import Views
from flat.tree.restore import deserialize_instance, deserialize_node, shared_instance
from flat.tree.schema import json_schema_or_open
from flat.tree.taking import cede_content
from flat.tree.tools import output_text, tool_options
from flat.tree.toolset import function_tool, generate_tool_definitions, offered_tools
from flat.tree.view import Chat, live_messages

RECENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What the engine has to know of a node."""

    name: str
    worker: bool = False
    on_end_turn: str = "cede"
    max_steps: int | None = None
    machine: str | None = None
    """The machine that does the node's work, instead of a model."""
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of the node's own, the charter's and its packs' tools that differ from the default:
    `in_doubt`, `timeout`, `terminal`. An ancestor's tools are found with `tool_settings`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePlan:
    """What the engine has to know of a charter."""

    name: str
    digest: str
    nodes: Mapping[str, NodePlan]


def plan(charter: Charter) -> TreePlan:
    """A charter as the engine's data."""
    nodes = {key: node_plan(charter, node, key) for key, node in charter.nodes.items()}
    return TreePlan(name=charter.name, digest=digest_of(charter), nodes=nodes)


def node_plan(charter: Charter, node: Node[Any], name: str) -> NodePlan:
    """One node as the engine's data."""
    return NodePlan(
        name=name,
        worker=node.worker,
        on_end_turn=node.on_end_turn,
        max_steps=node.max_steps,
        machine=node.machine.program if node.machine is not None else None,
        tools=tool_settings(charter, node),
    )


def tool_settings(
    charter: Charter, node: Node[Any], ancestor_nodes: Sequence[Node[Any]] = ()
) -> dict[str, Mapping[str, Any]]:
    """The settings of every tool that a leaf has, by name; a tool that the provider runs has none."""
    offered = offered_tools(charter, node, ancestor_nodes)
    return {name: tool_options(tool.entry) for name, tool in offered.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One model call of a leaf, complete."""

    system: SystemPrompt
    messages: list[Chat]
    tools: list[Mapping[str, Any]]
    settings: Mapping[str, Any]
    """`model`, `max_tokens` and `temperature` where they are set."""
    output_schema: Mapping[str, Any] | None = None
    tool_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the engine has to know of each tool that is offered: `in_doubt`, `timeout`, `terminal`, `machine`."""


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools of a leaf, as a model is offered them and as the engine knows them."""

    definitions: list[Mapping[str, Any]]
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TreeBinding:
    """The live Python behind a tree program."""

    charter: Charter
    _recent: list[tuple[Mapping[str, Any], Instance[Any]]] = field(
        default_factory=list, compare=False, repr=False
    )
    """The trees that were looked at last: between two changes everybody asks for the same one."""
    _tools: dict[tuple[str, ...], OfferedTools] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def external(self) -> bool:
        """Whether any state may be owned outside."""
        owners: tuple[Any, ...] = (*self.charter.nodes.values(), *self.charter.known_packs.values())
        return any(owner.externalize is not None for owner in owners)

    # -- trees --------------------------------------------------------------------

    def started(self, root: Instance[Any]) -> Mapping[str, Any]:
        """The tree that an execution is born with, as data. Raises `TreeError` when it cannot be one."""
        return serialize_instance(start_tree(self.charter, without_calls(root)), self.charter)

    def tree(self, data: Mapping[str, Any]) -> Instance[Any]:
        """A live view of a tree, for those who do not change it. The data is not to change either."""
        for known, root in self._recent:
            if known is data:
                return root
        return self._remember(data, shared_instance(self.charter, data))

    def fresh(self, data: Mapping[str, Any]) -> Instance[Any]:
        """A live tree of one's own."""
        return deserialize_instance(self.charter, data)

    def data(self, root: Instance[Any]) -> Mapping[str, Any]:
        """A live tree as data, to be read only."""
        data = shared_data(root, self.charter)
        self._remember(data, root)
        return data

    def _remember(self, data: Mapping[str, Any], root: Instance[Any]) -> Instance[Any]:
        self._recent[:] = [(data, root), *self._recent[: RECENT - 1]]
        return root

    def batch(self, data: Mapping[str, Any]) -> Batch:
        """A tree that many changes are made to."""
        return Batch(self.charter, self.tree(data))

    def after(
        self, tree: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]
    ) -> tuple[Mapping[str, Any], list[tuple[int, TreeError]]]:
        """The tree with changes applied, and for each refused one its index and why."""
        root, refused = self.tree(tree), []
        for index, data in enumerate(changes):
            done = apply_changes(self.charter, root, [change_from_data(data)])
            root = done.root
            refused += [(index, error) for _, error in done.refused]
        return self.data(root), refused

    def node(self, data: Mapping[str, Any]) -> Node[Any]:
        """The node behind a ref or an inline definition."""
        return deserialize_node(self.charter, data)

    # -- what effects do ----------------------------------------------------------

    def request(
        self,
        tree: Mapping[str, Any],
        leaf_id: str,
        history: Sequence[Mapping[str, Any] | Message],
        *,
        ephemeral_from: int = 0,
        current_step: int = 0,
        max_steps: int = 0,
        views: Views | None = None,
    ) -> ModelRequest:
        """The model call of a leaf on a tree with a history."""
        path = get_path(self.tree(tree), leaf_id)
        leaf, ancestors = path[-1], [instance.node for instance in path[:-1]]
        messages = (views or Views()).chat(live_messages(history), leaf, ephemeral_from=ephemeral_from)
        config = effective_config(self.charter.executor, leaf.node.executor_config)
        settings = {name: getattr(config, name) for name in ("model", "max_tokens", "temperature")}
        output = leaf.node.output
        return ModelRequest(
            system=system_prompt(self.charter, path, current_step=current_step, max_steps=max_steps),
            messages=messages,
            tools=self._offered(leaf.node, ancestors).definitions,
            settings={name: value for name, value in settings.items() if value is not None},
            output_schema=json_schema_or_open(output.schema) if output is not None else None,
            tool_settings=self.tool_settings(leaf.node, ancestors),
        )

    def tool_settings(
        self, node: Node[Any], ancestor_nodes: Sequence[Node[Any]] = ()
    ) -> Mapping[str, Mapping[str, Any]]:
        """The settings of every tool that a leaf has, by name."""
        return self._offered(node, ancestor_nodes).settings

    def _offered(self, node: Node[Any], ancestor_nodes: Sequence[Node[Any]]) -> OfferedTools:
        """What a leaf is offered; kept for the nodes of the charter, which do not change."""
        nodes = (node, *ancestor_nodes)
        names = tuple(name for one in nodes if (name := self._registered(one)) is not None)
        known = self._tools.get(names) if len(names) == len(nodes) else None
        if known is None:
            definitions = generate_tool_definitions(self.charter, node, ancestor_nodes)
            settings = tool_settings(self.charter, node, ancestor_nodes)
            known = OfferedTools([function_tool(one) for one in definitions], settings)
            if len(names) == len(nodes):
                self._tools[names] = known
        return known

    def _registered(self, node: Node[Any]) -> str | None:
        name = self.charter.name_of(node)
        return name if name is not None and self.charter.nodes[name] is node else None

    async def call(
        self,
        tree: Mapping[str, Any],
        leaf_id: str,
        call: Mapping[str, Any],
        *,
        history: Sequence[Mapping[str, Any] | Message] = (),
        effect_id: str = "",
    ) -> Mapping[str, Any] | None:
        """Make one call `{id, name, arguments}` of a model. New instances get ids derived from the effect's."""
        caller = Caller(
            charter=self.charter,
            leaf_id=leaf_id,
            history=live_messages(history),
            idempotency_key=effect_id,
            new_id=numbered(effect_id or call["id"]),
        )
        asked = ToolCall(call["id"], call["name"], call.get("arguments") or {})
        outcome = await run_call(caller, self.tree(tree), asked)
        return None if outcome is None else outcome_data(outcome)

    def machine_input(
        self, tree: Mapping[str, Any], leaf_id: str, call: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """For a tool that is a machine: `{"input": …}` to start it with, or `{"outcome": …}` when the call is wrong."""
        asked = ToolCall(call["id"], call["name"], call.get("arguments") or {})
        given = machine_input(Caller(charter=self.charter, leaf_id=leaf_id), self.tree(tree), asked)
        if isinstance(given, CallOutcome):
            return {"outcome": outcome_data(given)}
        return {"input": given}

    def machine_outcome(
        self, tree: Mapping[str, Any], leaf_id: str, call: Mapping[str, Any], output: Any
    ) -> Mapping[str, Any]:
        """The outcome of a call whose machine is done."""
        asked = ToolCall(call["id"], call["name"], call.get("arguments") or {})
        caller = Caller(charter=self.charter, leaf_id=leaf_id)
        return outcome_data(machine_outcome(caller, self.tree(tree), asked, output))

    def node_input(self, tree: Mapping[str, Any], leaf_id: str) -> Mapping[str, Any]:
        """The input of the machine that does a leaf's work."""
        leaf = get_path(self.tree(tree), leaf_id)[-1]
        if leaf.node.machine is None:
            raise TreeError("bad_node", f'"{leaf.node.label}" runs no machine')
        return leaf.node.machine.given(leaf.state)

    def node_content(self, tree: Mapping[str, Any], leaf_id: str, output: Any) -> Any:
        """What a leaf cedes whose machine is done: text, or messages as data."""
        use = get_path(self.tree(tree), leaf_id)[-1].node.machine
        result = use.result(output) if use is not None else output
        return cede_content(result if isinstance(result, list) else output_text(result))

    async def command(
        self,
        tree: Mapping[str, Any],
        invocation: Mapping[str, Any],
        *,
        history: Sequence[Mapping[str, Any] | Message] = (),
        effect_id: str = "",
    ) -> Mapping[str, Any]:
        """Run the command of an invocation."""
        outcome = await perform_command(
            self.charter,
            self.tree(tree),
            invocation["name"],
            invocation.get("input"),
            instance_id=invocation.get("instanceId"),
            history=live_messages(history),
            new_id=numbered(effect_id or "command"),
        )
        return command_outcome_data(outcome)


def numbered(base: str) -> Any:
    """Ids that follow from a base: the same ones in the same order, whenever they are asked for again."""
    count = 0

    def next_id() -> str:
        nonlocal count
        count += 1
        return f"{base}.{count}"

    return next_id


def outcome_data(outcome: CallOutcome) -> dict[str, Any]:
    """The outcome of a call as data; what has its default is left out."""
    data: dict[str, Any] = {"content": outcome.content}
    if outcome.is_error:
        data.update(is_error=True, code=outcome.code)
    if outcome.changes:
        data["changes"] = [change_data(change) for change in outcome.changes]
    if outcome.user_items:
        data["user_items"] = [dict(item) for item in outcome.user_items]
    if outcome.terminal:
        data["terminal"] = True
    return data


def outcome_from_data(data: Mapping[str, Any]) -> CallOutcome:
    """Undo `outcome_data`."""
    changes = tuple(change_from_data(change) for change in data.get("changes", ()))
    fields = {key: data[key] for key in ("content", "is_error", "code", "terminal") if key in data}
    return CallOutcome(**fields, changes=changes, user_items=tuple(data.get("user_items", ())))


def command_outcome_data(outcome: CommandOutcome) -> dict[str, Any]:
    """The outcome of a command as data."""
    data = outcome.result()
    if outcome.code:
        data["code"] = outcome.code
    if outcome.changes:
        data["changes"] = [change_data(change) for change in outcome.changes]
    if outcome.messages:
        data["messages"] = [message_data(message) for message in outcome.messages]
    return data

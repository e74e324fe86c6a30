"""The other ways in which an author may write the same thing, and what is said of things that are none."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from travel import Desk, Watch, call, charter, desk, fare_watch, likes

from flat.core.op import UNSET
from flat.errors import CallRefused, CharterError, CharterMismatch, StateError, TreeError
from flat.tree import (
    Charter,
    Command,
    CommandCtx,
    GeneralTransition,
    Instance,
    Node,
    Pack,
    PackCtx,
    Ref,
    SerialTransition,
    SpawnTarget,
    Tool,
    TransitionContext,
    command,
    command_result,
    create_standard_executor,
    create_suspend_info,
    create_transition,
    describe,
    deserialize_node,
    perform_command,
    serialize_node,
    serialize_pack,
    spawn,
    start_tree,
    suspend,
    tool,
    transition,
    transition_to,
)
from flat.tree.docstring import read_docstring
from flat.tree.prompt import resumed_note
from flat.tree.schema import JsonSchema
from flat.tree.transitions import TransitionEntry

pytestmark = pytest.mark.anyio


def refusal(make: Any) -> CharterError:
    with pytest.raises(CharterError) as caught:
        make()
    return caught.value


def within(node: Node[Any]) -> tuple[Instance[Any], Charter]:
    made = Charter("c", nodes={"n": node, "desk": desk, "fare_watch": fare_watch})
    return start_tree(made, Instance(node, {}, id="r")), made


# -- plain functions --------------------------------------------------------------


def fare(leg: str) -> str:
    """Look a fare up."""
    return f"{leg}: 118"


def leave(state: dict[str, Any]) -> Any:
    """Leave for the desk."""
    return transition_to("desk" if state else Ref("desk"))  # type: ignore[arg-type]


def stop(ctx: CommandCtx[Any]) -> Any:
    """Stop it all."""
    return command_result(ctx.instance_id)


async def test_plain_functions_serve_as_tools_transitions_and_commands() -> None:
    node = Node("x", dict, tools=[fare], transitions={"leave": leave}, commands={"stop": stop})
    root, made = within(node)
    assert (await call(root, "fare", {"leg": "Oslo"}, within=made)).content == "Oslo: 118"
    assert not (await call(root, "transition", {"to": "leave"}, within=made)).is_error
    assert (await perform_command(made, root, "stop")).value == "r"
    entry: TransitionEntry = node.transitions["leave"]
    assert repr(entry) == "CodeTransition('leave')"
    assert [repr(t) for t in node.tools.values()] == ["Tool('fare')"]
    assert [repr(c) for c in node.commands.values()] == ["Command('stop')"]
    assert repr(node) == "Node('x')"
    assert repr(likes) == "Pack('likes')"
    assert repr(root) == "Instance('x', 'r')"


async def test_decorated_things_can_be_renamed_and_called() -> None:
    @tool(name="look")
    def look_up(leg: str) -> str:
        return leg

    @transition(name="onwards")
    def go(state: Desk) -> Any:
        return transition_to(fare_watch, {"leg": state.legs[0]})

    @command("Halt", name="halt")
    def halt_it() -> Any:
        return command_result("halted")

    node = Node("x", Desk, tools=[look_up], transitions=[go], commands=[halt_it], initial_state={})
    assert (list(node.tools), list(node.transitions), list(node.commands)) == (
        ["look"],
        ["onwards"],
        ["halt"],
    )
    assert look_up("a") == "a"
    assert go(Desk(legs=["Oslo"])).state == {"leg": "Oslo"}
    assert halt_it() == command_result("halted")
    assert node.commands["halt"].description == "Halt"


async def test_a_transition_may_take_its_context_whole() -> None:
    @transition("Go")
    def go(leg: str, context: TransitionContext) -> Any:
        return transition_to(fare_watch, {"leg": f"{leg} {context.args['leg']} {context.reason}"})

    root, made = within(Node("x", dict, transitions={"go": go}))
    outcome = await call(root, "transition_go", {"leg": "Oslo", "reason": "why"}, within=made)
    assert outcome.changes[0].state["leg"] == "Oslo Oslo why"  # type: ignore[union-attr]


async def test_the_explicit_form_of_a_transition_gets_state_and_context() -> None:
    class Args(BaseModel):
        leg: str

    def execute(state: Any, context: TransitionContext) -> Any:
        return spawn([SpawnTarget(fare_watch, {"leg": context.args.leg}, brief=context.reason)])

    go = create_transition(desk, description="Go", arguments=Args, execute=execute)
    root, made = within(Node("x", dict, transitions={"go": go}))
    outcome = await call(root, "transition_go", {"leg": "Oslo", "reason": "why"}, within=made)
    (child,) = outcome.changes[0].children  # type: ignore[union-attr]
    assert (child.state["leg"], child.brief) == ("Oslo", "why")


async def test_arguments_that_are_no_object_come_from_args() -> None:
    seen: list[Any] = []

    def execute(state: Any, context: TransitionContext) -> Any:
        seen.append(context.args)
        return transition_to(desk)

    go = create_transition(description="Go", arguments=list[int], execute=execute)
    root, made = within(Node("x", dict, transitions={"go": go}))
    assert not (await call(root, "transition_go", {"args": ["3"], "reason": ""}, within=made)).is_error
    assert (await call(root, "transition_go", {"reason": ""}, within=made)).code == "invalid_tool_input"
    assert seen == [[3]]


def test_children_can_be_given_in_every_form() -> None:
    made = spawn([desk, (desk, {"legs": []}), SpawnTarget(desk)])
    assert [target.state for target in made.children] == [UNSET, {"legs": []}, UNSET]
    with pytest.raises(CallRefused, match="give state and options to each"):
        spawn([desk], brief="all")  # type: ignore[call-overload]


def test_commands_have_helpers_for_their_results() -> None:
    from flat.tree import CommandContext
    from flat.tree.schema import as_schema
    from flat.tree.state import Draft

    ctx: CommandContext[Any] = CommandContext(Draft(as_schema(dict), {}), instance_id="r")
    assert ctx.suspend("why", suspend_id="s") == suspend("why", "s")
    assert ctx.cede("x").content == "x"
    assert ctx.get_instance_messages() == []


def test_a_suspension_has_the_time_at_which_it_begins() -> None:
    info = create_suspend_info(
        suspend("why", "s", {"n": 1}, channel="c", timeout=3), "2026-03-14T09:30:00.000Z"
    )
    assert (info.suspended_at, info.channel, info.timeout) == ("2026-03-14T09:30:00.000Z", "c", 3)
    assert "it had waited because: why" in resumed_note("desk", info.reason)


# -- docstrings -------------------------------------------------------------------


def test_a_docstring_is_read_up_to_its_sections() -> None:
    def fn() -> None:
        """Do it
        well.

        And more.

        Args:
            a: first
            b (int): second,
                continued
        Then this.

        Returns:
            nothing: at all
        """

    text, arguments = read_docstring(fn)
    assert text == "Do it well.\n\nAnd more.\n\nThen this."
    assert arguments == {"a": "first", "b": "second, continued"}


def test_fields_of_a_docstring_are_read_too() -> None:
    def fn() -> None:
        """Do it.

        :param str a: first,
            continued
        :type a: str
        :param b: second
        :returns: nothing
        """

    assert read_docstring(fn) == ("Do it.", {"a": "first, continued", "b": "second"})
    assert read_docstring(lambda: None) == ("", {})


# -- things that are none ---------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Node("x", dict, tools=[3]), "not_a_tool"),
        (lambda: Node("x", dict, transitions={"a": 3}), "not_a_transition"),
        (lambda: Node("x", dict, commands=[3]), "not_a_command"),
        (lambda: Node("x", dict, transitions=[GeneralTransition("x")]), "name_missing"),
        (lambda: Node("x", dict, transitions={"no name": GeneralTransition("x")}), "bad_name"),
        (lambda: Charter("c", nodes=[3]), "not_a_node"),  # type: ignore[list-item]
        (lambda: Charter("c", nodes=[Node("x", dict)]), "name_missing"),
        (lambda: Charter("c", transitions={"a": Ref("b")}), "not_a_transition"),
        (
            lambda: Charter("c", nodes={"a": Node("x", dict, pack_boundary=["like"])}, packs=[likes]),
            "unknown_ref",
        ),
        (lambda: Pack(""), "name_missing"),
        (lambda: Pack("p", commands=[Command("c", execute=print), stop]), "wrong_context"),
        (lambda: Pack("p", initial_state=3), "invalid_state"),  # type: ignore[arg-type]
        (lambda: Command("c"), "incomplete"),
        (lambda: Node("x", dict, commands=[stop_pack]), "wrong_context"),
    ],
)
def test_what_is_none_is_refused(make: Any, code: str) -> None:
    assert refusal(make).code == code


def stop_pack(ctx: PackCtx[Any]) -> Any:
    return command_result()


def test_a_transition_that_refers_to_itself_is_refused() -> None:
    error = refusal(lambda: Charter("c", nodes={"a": Node("x", dict, transitions={"t": {"ref": "a.t"}})}))
    assert "refers to itself" in error.message


def test_a_state_needs_every_field_unless_the_pack_has_none_to_begin_with() -> None:
    assert Pack("p", validator=Watch).first_state() == {}
    assert Pack("p", validator=Desk).first_state() == {"legs": [], "traveller": ""}


def test_a_json_schema_takes_models_too() -> None:
    schema = JsonSchema[Any]({"type": "object", "required": ["leg"]})
    assert schema.parse(Watch(leg="a")) == {"leg": "a", "limit": 100.0}
    many = JsonSchema[Any](
        {"type": "array", "items": {"type": "object", "properties": {"n": {"default": 1}}}}
    )
    assert many.validate([{}]) == [{"n": 1}]
    with pytest.raises(StateError, match="not a JSON number"):
        many.validate([{"m": float("nan")}])


@pytest.mark.parametrize(
    "node",
    [
        3,
        {"instructions": 3, "validator": {}},
        {"instructions": "x", "validator": 3},
        {"instructions": "x", "validator": {"type": 3}},
        {"instructions": "x", "validator": {}, "tools": [1]},
        {"instructions": "x", "validator": {}, "commands": {"c": 3}},
        {"instructions": "x", "validator": {}, "transitions": {"t": {"type": "code"}}},
        {"instructions": "x", "validator": {}, "transitions": {"t": {"type": "serial", "description": "d"}}},
        {"instructions": "x", "validator": {}, "onEndTurn": "later"},
        {"instructions": "x", "validator": {"required": ["a"]}, "initialState": {}},
        {"ref": 3},
    ],
)
def test_a_stored_node_that_is_none_is_refused(node: Any) -> None:
    with pytest.raises(CharterMismatch):
        deserialize_node(charter, node)


def test_general_and_nested_serial_transitions_are_read() -> None:
    inner = {"instructions": "y", "validator": {}, "initialState": {}}
    node = deserialize_node(
        charter,
        {
            "instructions": "x",
            "validator": {},
            "transitions": {
                "g": {"type": "general", "description": "any"},
                "s": {"type": "serial", "description": "d", "node": inner},
            },
        },
    )
    serial = node.transitions["s"]
    assert isinstance(serial, SerialTransition)
    assert charter.resolved_node(serial.node).instructions == "y"
    assert isinstance(node.transitions["g"], GeneralTransition)
    assert (
        serialize_node(Node("x", dict, transitions={"s": serial}), charter)["transitions"]["s"]["node"][
            "initialState"
        ]
        == {}
    )


def test_an_inline_pack_is_written_with_its_computed_text() -> None:
    own = Pack("own", "Mine", instructions=lambda state: f"n={state['n']}", initial_state={"n": 1})
    data = serialize_pack(own, charter, {"n": 2})
    assert (data["instructions"], data["initialState"]) == ("n=2", {"n": 1})
    with pytest.raises(TreeError, match="instructions of pack"):
        serialize_pack(own, charter, {"m": 2})


def test_a_description_covers_every_kind_of_entry() -> None:
    node = Node(
        "x",
        dict,
        name="n",
        transitions={
            "g": GeneralTransition("any"),
            "s": SerialTransition("desk", "d"),
            "i": SerialTransition(desk, "d"),
        },
        executor_config={"max_tokens": 3},
        tools=[Tool("t", execute=print, in_doubt="ask", timeout=3)],
    )
    shown = describe(Charter("c", nodes={"n": node, "desk": desk, "fare_watch": fare_watch}))["nodes"]["n"]
    assert [shown["transitions"][key].get("node") for key in "gsi"] == [None, "desk", "desk"]
    assert shown["tools"]["t"]["in_doubt"] == "ask"
    assert create_standard_executor("k", model="m").model == "m"

"""Whatever a model answers and a tool does: a result that the model can act on, and the tree as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from running import ANY, results, steps, told

from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.errors import CharterError, TreeError
from flat.runtime.trees import TreeMachine, create_machine
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Ctx, Instance, Node, Pack, spawn, tool, transition

pytestmark = pytest.mark.anyio

TYPED = {
    "type": "object",
    "properties": {"legs": {"type": "array", "items": {"type": "string"}}},
    "required": ["legs"],
    "additionalProperties": False,
}


@tool("Add a leg")
def add_leg(city: str, times: int = 1) -> str:
    return f"added {city} {times} times"


@tool("Write what does not fit")
def spoil(ctx: Ctx) -> str:
    ctx.update_state({"legs": 7})
    return "written"


@tool("Exit")
def leave() -> str:
    raise SystemExit("the tool wants out")


@tool("Recurse")
def recurse() -> str:
    def deeper(depth: int) -> int:
        return deeper(depth + 1)

    return str(deeper(0))


@transition("Go deeper")
def deeper() -> Any:
    return spawn(nested, {"legs": []})


@transition("Break")
def break_down(leg: int) -> Any:
    raise LookupError("no such leg")


desk = Node(
    "Plan.",
    TYPED,
    name="desk",
    initial_state={"legs": []},
    tools=[add_leg, spoil, recurse],
    transitions=[deeper, break_down],
)
nested = Node("Go on.", TYPED, name="nested", transitions=[deeper])


def machine(*answers: Any, tools: Any = ()) -> TreeMachine[Any]:
    first = Node(
        desk.instructions,
        TYPED,
        name="desk",
        initial_state={"legs": []},
        tools=[*desk.tools.values(), *tools],
        transitions=desk.transitions,
    )
    charter = Charter("c", executor=ScriptedExecutor(*answers), nodes=[first, nested])
    return create_machine(charter, Instance(first, {"legs": []}, id="r"))


class AsItIs:
    """Gives its answers in turn, untouched: also such as no good adapter would give."""

    def __init__(self, *answers: AgentResult) -> None:
        self.answers, self.requests = list(answers), list[AgentRequest]()

    async def call(self, request: AgentRequest) -> AgentResult:
        self.requests.append(request)
        return self.answers.pop(0)


def raw(*answers: AgentResult) -> tuple[TreeMachine[Any], AsItIs]:
    executor = AsItIs(*answers)
    charter = Charter("c", executor=executor, nodes=[desk, nested])
    return create_machine(charter, Instance(desk, {"legs": []}, id="r")), executor


NONSENSE = [
    (call("add_legs", city="Oslo"), 'unknown tool "add_legs"; did you mean "add_leg"?'),
    (call("", city="Oslo"), 'unknown tool ""'),
    (call("add_leg"), "invalid input for add_leg: `city`"),
    (call("add_leg", city="Oslo", times="often"), "`times`"),
    (call("updateState"), "`patch` is missing"),
    (call("updateState", patch=[1]), "`patch` is missing"),
    (call("updateState", patch={"legs": 3}), "state refused"),
    (call("updateState", patch={"wheels": 4}), "wheels"),
    (call("transition", to="deepr"), 'unknown transition "deepr"; did you mean "deeper"?'),
    (call("transition"), "`to` is missing"),
    (call("transition_break_down", leg="x"), 'invalid arguments for "break_down"'),
    (call("transition_break_down", leg=1), "no such leg"),
    (call("spoil"), "state refused"),
    (call("recurse"), "recurse failed: maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(("asked", "said"), NONSENSE)
async def test_a_wrong_call_is_a_result_that_says_what_to_do(asked: Any, said: str) -> None:
    office = machine(say("", asked), "Sorry")
    found = await steps(office, "Go")
    assert told(found) == [("tool_use", False), ("end_turn", True)]
    (result,) = results(found[0])
    assert result["is_error"] is True
    assert said in result["content"]
    assert office.instance.state == {"legs": []}
    assert office.instance.children == ()


def answer(*calls: Any) -> AgentResult:
    """An answer as an adapter may hand it on, calls as they came."""
    return AgentResult(content=None, tool_calls=calls, usage=Usage(api_calls=1))


async def test_arguments_that_are_no_json_are_told_to_the_model() -> None:
    bad = {"id": "1", "name": "add_leg", "arguments": {}, "invalid_arguments": '{"city": "Os'}
    found = await steps(machine(answer(bad), "Sorry"), "Go")
    (result,) = results(found[0])
    assert result["content"] == 'the arguments of the call are no JSON object: {"city": "Os'


async def test_calls_with_the_same_id_are_made_and_answered_one_by_one() -> None:
    same = [{"id": "1", "name": "add_leg", "arguments": {"city": city}} for city in ("Oslo", "Rome", "Bern")]
    office, executor = raw(answer(*same), say("Done"))
    found = await steps(office, "Go")
    shown = results(found[0])
    assert [result["content"][6:10] for result in shown] == ["Oslo", "Rome", "Bern"]
    assert len({result["tool_use_id"] for result in shown}) == 3
    chat = executor.requests[-1].messages or []
    assert [m["content"][6:10] for m in chat if m["role"] == "tool"] == ["Oslo", "Rome", "Bern"]


async def test_ids_that_come_again_in_a_later_answer_keep_their_own_results() -> None:
    turns = [say("", call("add_leg", id="c", city=city)) for city in ("Oslo", "Rome")]
    office, executor = raw(*turns, say("Done"))
    await steps(office, "Go")
    chat = executor.requests[-1].messages or []
    assert [m["content"][6:10] for m in chat if m["role"] == "tool"] == ["Oslo", "Rome"]


@pytest.mark.parametrize(
    "broken",
    [
        {"name": "add_leg", "arguments": {"city": "Oslo"}},
        {"id": None, "name": "add_leg", "arguments": {"city": "Oslo"}},
        {"id": 7, "name": "add_leg", "arguments": {"city": "Oslo"}},
    ],
)
async def test_a_call_without_an_id_is_given_one(broken: Any) -> None:
    found = await steps(raw(answer(broken), say("Done"))[0], "Go")
    (result,) = results(found[0])
    assert (result["tool_use_id"], result["content"]) == ("call-0", "added Oslo 1 times")


@pytest.mark.parametrize("arguments", [None, "Oslo", ["Oslo"], 3])
async def test_arguments_that_are_no_object_are_told_to_the_model(arguments: Any) -> None:
    asked = {"id": "1", "name": "add_leg", "arguments": arguments}
    found = await steps(raw(answer(asked), say("Done"))[0], "Go")
    (result,) = results(found[0])
    assert result["content"] == f"the arguments of the call are no JSON object: {arguments!r}"


async def test_a_huge_answer_with_a_thousand_calls_is_taken_as_it_is() -> None:
    many = [call("add_leg", id=str(i), city="x" * 1000) for i in range(300)]
    office = machine(say("y" * 1_000_000, *many), "Done")
    found = await steps(office, "Go")
    assert len(results(found[0])) == 300
    assert found[-1].response == "Done"


async def test_an_answer_with_nothing_in_it_ends_the_turn() -> None:
    found = await steps(machine(AgentResult()), "Go")
    assert told(found) == [("end_turn", True)]
    assert found[0].response == ""


# -- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, ""),
        ({"a": {1, 2}}, None),
        (object(), None),
        (b"\xff\xfe", None),
        (float("nan"), None),
        ("\ud800", None),
    ],
)
async def test_whatever_a_tool_gives_back_ends_as_text_or_as_an_error(value: Any, said: str | None) -> None:
    @tool("Give it")
    def junk() -> Any:
        return value

    office = machine(say("", call("junk")), "Done", tools=[junk])
    found = await steps(office, "Go")
    (result,) = results(found[0])
    assert isinstance(result["content"], str)
    assert said is None or result["content"] == said
    assert found[-1].response == "Done"


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k"), AssertionError(), TreeError("x", "bad")])
async def test_a_tool_that_raises_is_an_error_result(error: Exception) -> None:
    @tool("Raise")
    def broken() -> str:
        raise error

    found = await steps(machine(say("", call("broken")), "Done", tools=[broken]), "Go")
    (result,) = results(found[0])
    assert result["is_error"] is True
    assert result["content"]


async def test_a_tool_that_hangs_is_stopped_at_its_time() -> None:
    import anyio

    @tool("Hang", timeout=0.01)
    async def hang() -> str:
        await anyio.sleep_forever()
        return ""

    found = await steps(machine(say("", call("hang")), "Done", tools=[hang]), "Go")
    (result,) = results(found[0])
    assert result["content"] == "hang was stopped: it was not done within 0.01 s"


# -- trees and charters ----------------------------------------------------------------------------


async def test_a_tree_that_grows_too_deep_is_refused_and_the_model_is_told() -> None:
    office = machine(lambda request: say("", call("transition", to="deeper")))
    with pytest.raises(TreeError, match="no end after 105 steps"):
        await steps(office, "Go", max_steps=105)
    depth, instance = 0, office.instance
    while instance.children:
        depth, instance = depth + 1, instance.children[0]
    assert depth == 100
    last = [m for m in office.history if isinstance(m.items, list) and m.items[0]["type"] == "tool_result"][
        -1
    ]
    assert "more than 100 instances deep" in str(last.items)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Charter("c", packs=[Pack("p"), Pack("p")]), "duplicate_name"),
        (lambda: Node("x", packs=[Pack("p"), Pack("p")]), "duplicate_name"),
        (lambda: Charter("c", nodes={"a.b": Node("x")}), "bad_name"),
        (lambda: Charter("c", tools={"other": add_leg}), "name_mismatch"),
        (lambda: Node("x", tools={"updateState": lambda: ""}), "reserved_name"),
        (lambda: Node("x", tools={"transition_x": lambda: ""}), "reserved_name"),
        (lambda: Pack("p", tools={"transition": lambda: ""}), "reserved_name"),
        (lambda: Charter("c", nodes=[Node("x", name="n", transitions={"t": {"ref": "no"}})]), "unknown_ref"),
        (lambda: Node("x", executor_config={"modell": "y"}), "executor_config_type"),
        (lambda: Node("x", executor_config={"model": 3}), "executor_config_type"),
        (lambda: Node("x", on_end_turn="sometimes"), "bad_setting"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_charter_is_refused_when_it_is_made(make: Callable[[], Any], code: str) -> None:
    with pytest.raises(CharterError) as refused:
        make()
    assert refused.value.code == code


def test_a_state_that_its_schema_refuses_is_told_with_its_node() -> None:
    with pytest.raises(TreeError, match='"desk"') as refused:
        create_machine(
            Charter("c", executor=ScriptedExecutor("x"), nodes=[desk, nested]), Instance(desk, {"legs": 3})
        )
    assert refused.value.code == "invalid_state"


async def test_an_exit_inside_a_tool_is_not_swallowed() -> None:
    with pytest.raises(BaseException, match="the tool wants out") as out:
        await steps(machine(say("", call("leave")), "Done", tools=[leave]), "Go")
    assert not isinstance(out.value, Exception)


def test_any_is_an_open_schema() -> None:
    assert ANY == {"type": "object"}

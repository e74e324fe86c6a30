"""One call of a model: tools, state updates and transitions; and all calls of one answer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from travel import (
    Desk,
    Likes,
    add_leg,
    billing_desk,
    call,
    charter,
    desk,
    fare_watch,
    tree,
    watcher,
)

from flat.tree import (
    BuiltinTool,
    Caller,
    Ceded,
    Charter,
    Ctx,
    GeneralTransition,
    Instance,
    Message,
    NewChild,
    Node,
    Pack,
    PackCtx,
    PackPatch,
    PipelineResult,
    SerialTransition,
    Spawned,
    StateError,
    StatePatch,
    Suspended,
    Tool,
    ToolCall,
    Transitioned,
    apply_changes,
    cede,
    create_transition,
    replayed,
    run_call,
    run_tool_pipeline,
    spawn,
    start_tree,
    suspend,
    tool,
    tool_reply,
    transition,
    transition_to,
    user_message,
)

pytestmark = pytest.mark.anyio


def root(*children: Instance[Any], **state: Any) -> Instance[Any]:
    return start_tree(charter, tree(*children, **state))


def one(*tools: Any, state: Any = None, **options: Any) -> tuple[Instance[Any], Charter]:
    """A tree of one node with these tools, and its charter."""
    node = Node("x", dict, name="one", tools=tools, **options)
    within = Charter(
        "c", nodes={"one": node, "desk": desk, "fare_watch": fare_watch, "billing": billing_desk}
    )
    return start_tree(within, Instance(node, state or {}, id="r")), within


# -- tools ------------------------------------------------------------------------


async def test_a_tool_gives_text_and_a_record_of_what_it_changed() -> None:
    outcome = await call(root(legs=["Oslo"]), "add_leg", {"city": "Turin"})
    assert outcome.content == "added Turin"
    assert not outcome.is_error
    assert outcome.changes == (StatePatch(instance_id="r", patch={"legs": ["Oslo", "Turin"]}),)


async def test_a_sync_tool_gives_compact_json() -> None:
    outcome = await call(root(), "lookup_fare", {"leg": "Oslo"})
    assert outcome.content == '{"leg":"Oslo","fare":118,"währung":"€"}'


async def test_an_invalid_input_is_a_result_that_names_the_field() -> None:
    outcome = await call(root(), "add_leg", {"town": "Turin"})
    assert (outcome.is_error, outcome.code, outcome.changes) == (True, "invalid_tool_input", ())
    assert "`city`: Field required" in outcome.content


async def test_an_unknown_tool_is_a_result_with_the_nearest_name() -> None:
    outcome = await call(root(), "add_legs", {})
    assert (outcome.code, outcome.content) == (
        "unknown_tool",
        'unknown tool "add_legs"; did you mean "add_leg"?',
    )


async def test_an_exception_of_a_tool_is_a_result_and_what_it_wrote_is_forgotten() -> None:
    @tool
    def half(ctx: Ctx[Any]) -> str:
        ctx.update_state({"a": 1})
        raise ValueError("no luck")

    tree_, within = one(half)
    outcome = await call(tree_, "half", within=within)
    assert (outcome.code, outcome.content, outcome.changes) == ("tool_failed", "half failed: no luck", ())


async def test_tools_get_the_parsed_input_also_in_packs() -> None:
    class Money(BaseModel):
        amount: float
        currency: str = "EUR"

    seen: list[Money] = []
    pay = Tool("pay", input_schema=Money, execute=lambda money, ctx: seen.append(money))
    tree_, within = one(packs=[Pack("purse", tools=[pay])])
    outcome = await call(tree_, "pay", {"amount": "3"}, within=within)
    assert outcome.content == ""
    assert seen == [Money(amount=3.0, currency="EUR")]


@pytest.mark.parametrize("owner", ["node", "pack", "charter"])
async def test_an_invalid_patch_raises_inside_the_tool_which_may_catch_it(owner: str) -> None:
    caught: list[str] = []

    def write(given: Any, ctx: Any) -> str:
        try:
            ctx.update_state({"legs": 3, "currency": 3})
        except StateError as error:
            caught.append(error.code)
        return "went on"

    tools = [Tool("write", execute=write)]
    pack = Pack("p", validator=Likes, tools=tools if owner == "pack" else [])
    node = Node("x", Desk, tools=tools if owner == "node" else [], packs=[pack], initial_state={})
    within = Charter("c", nodes={"n": node}, tools=tools if owner == "charter" else [])
    outcome = await call(start_tree(within, Instance(node, id="r")), "write", within=within)
    assert (outcome.content, outcome.changes, caught) == ("went on", (), ["state_patch_invalid"])


async def test_an_invalid_patch_that_is_not_caught_is_a_result() -> None:
    @tool
    def write(ctx: Ctx[Desk]) -> None:
        ctx.update_state({"legs": 3})

    node = Node("x", Desk, tools=[write], initial_state={})
    within = Charter("c", nodes={"n": node})
    outcome = await call(Instance(node, id="r"), "write", within=within)
    assert (outcome.is_error, outcome.code) == (True, "state_patch_invalid")
    assert "`legs`: Input should be a valid list" in outcome.content


async def test_the_state_of_a_context_is_a_copy_from_before() -> None:
    @tool
    def look(ctx: Ctx[Any]) -> list[Any]:
        ctx.update_state({"n": 2})
        ctx.state["list"].append("mine")
        ctx.model["n"] = 9
        return [ctx.state["n"], ctx.model["n"]]

    tree_, within = one(look, state={"n": 1, "list": []})
    outcome = await call(tree_, "look", within=within)
    assert outcome.content == "[1,1]"
    assert outcome.changes == (StatePatch(instance_id="r", patch={"n": 2}),)
    assert tree_.state == {"n": 1, "list": []}


async def test_a_typed_context_gives_the_model() -> None:
    @tool
    def count(ctx: Ctx[Desk]) -> int:
        ctx.replace_state(Desk(traveller=ctx.model.traveller.upper()))
        return len(ctx.model.legs)

    node = Node("x", Desk, tools=[count], initial_state={})
    within = Charter("c", nodes={"n": node})
    outcome = await call(Instance(node, Desk(legs=["a"], traveller="mira"), id="r"), "count", within=within)
    assert outcome.content == "1"
    assert outcome.changes == (StatePatch(instance_id="r", patch={"legs": [], "traveller": "MIRA"}),)


async def test_of_a_model_as_patch_only_the_set_fields_count() -> None:
    @tool
    def rename(ctx: Ctx[Desk]) -> None:
        ctx.update_state(Desk(traveller="Mira"))

    node = Node("x", Desk, tools=[rename], initial_state={})
    within = Charter("c", nodes={"n": node})
    outcome = await call(Instance(node, Desk(legs=["a"]), id="r"), "rename", within=within)
    assert outcome.changes == (StatePatch(instance_id="r", patch={"traveller": "Mira"}),)


async def test_a_tool_of_an_ancestor_reads_its_owner_and_may_not_write() -> None:
    outcome = await call(root(watcher(), legs=["Oslo"]), "add_leg", {"city": "Rome"}, leaf="w")
    assert (outcome.is_error, outcome.code) == (True, "ancestor_state_readonly")
    assert 'belongs to "desk"' in outcome.content


async def test_a_tool_may_write_its_owner_when_it_says_so_and_the_primary_runs() -> None:
    @tool(owner_state="write")
    def note(ctx: Ctx[Any]) -> str:
        ctx.update_state({"n": ctx.state["n"] + 1})
        return ctx.instance_id

    top = Node("x", dict, name="top", tools=[note])
    inner, worker = Node("y", dict, name="inner"), Node("z", dict, name="worker", worker=True)
    within = Charter("c", nodes={"top": top, "inner": inner, "worker": worker})
    both = Instance(top, {"n": 1}, [Instance(inner, {}, id="i"), Instance(worker, {}, id="w")], id="t")
    outcome = await call(both, "note", leaf="i", within=within)
    assert outcome.content == "i"
    assert outcome.changes == (StatePatch(instance_id="t", patch={"n": 2}),)
    refused = await call(both, "note", leaf="w", within=within)
    assert refused.code == "ancestor_state_readonly"


async def test_a_charter_tool_works_on_the_leaf_and_its_schema() -> None:
    @tool
    def mark(ctx: Ctx[Any]) -> str:
        ctx.update_state({"leg": 3})
        return ""

    within = Charter("c", nodes={"fare_watch": fare_watch}, tools=[mark])
    outcome = await call(Instance(fare_watch, {"leg": "a"}, id="r"), "mark", within=within)
    assert outcome.code == "state_patch_invalid"


async def test_a_pack_tool_writes_the_nearest_entry() -> None:
    @tool
    def put(value: int, ctx: PackCtx[Any]) -> None:
        ctx.update_state({"n": value})

    notes = Pack("notes", tools=[put], initial_state={"n": 0})
    leaf = Node("x", dict, name="leaf", packs=[notes])
    fence = Node("x", dict, name="fence", pack_boundary=["notes"])
    within = Charter("c", packs=[notes], nodes={"leaf": leaf, "fence": fence})
    top = start_tree(within, Instance(leaf, {}, id="t"))
    fenced = start_tree(
        within, Instance(leaf, {}, Instance(fence, {}, Instance(leaf, {}, id="l"), id="f"), id="t")
    )
    plain = await call(top, "put", {"value": 1}, leaf="t", within=within)
    assert plain.changes == (PackPatch(pack_name="notes", patch={"n": 1}),)
    inside = await call(fenced, "put", {"value": 2}, leaf="l", within=within)
    assert inside.changes == (PackPatch(pack_name="notes", patch={"n": 2}, owner_id="f"),)
    after = apply_changes(within, fenced, inside.changes).root
    assert after.pack_states == {"notes": {"n": 0}}
    assert after.children[0].pack_states == {"notes": {"n": 2}}


async def test_a_pack_tool_sees_nothing_of_the_node() -> None:
    @tool
    def peek(ctx: PackCtx[Any]) -> list[str]:
        return [name for name in ("instance_id", "get_instance_messages") if hasattr(ctx, name)]

    tree_, within = one(packs=[Pack("p", tools=[peek])])
    assert (await call(tree_, "peek", within=within)).content == "[]"


async def test_a_tool_sees_the_messages_of_its_own_instance() -> None:
    @tool
    def count(ctx: Ctx[Any]) -> int:
        return len(ctx.get_instance_messages())

    from flat.tree import Source

    history = [user_message("a"), user_message("b", source=Source(instance_id="r"))]
    tree_, within = one(count)
    caller = Caller(charter=within, leaf_id="r", history=history)
    outcome = await run_call(caller, tree_, ToolCall("c", "count"))
    assert outcome is not None
    assert outcome.content == "1"


async def test_a_reply_has_a_text_for_the_model_and_one_for_the_user() -> None:
    @tool
    def chart() -> Any:
        return tool_reply({"bars": [1]}, "drawn")

    tree_, within = one(chart)
    outcome = await call(tree_, "chart", within=within)
    assert (outcome.content, outcome.user_items) == ("drawn", ({"type": "output", "data": {"bars": [1]}},))


async def test_calls_of_a_tool_that_the_provider_runs_are_skipped() -> None:
    tree_, within = one(BuiltinTool("web_search", "web_search_20250305"))
    caller = Caller(charter=within, leaf_id="r")
    assert await run_call(caller, tree_, ToolCall("c", "web_search")) is None


# -- the state --------------------------------------------------------------------


async def test_a_model_patches_its_state() -> None:
    outcome = await call(root(legs=["Oslo"]), "updateState", {"patch": {"traveller": "Mira", "ghost": 1}})
    assert not outcome.is_error
    assert outcome.changes == (StatePatch(instance_id="r", patch={"traveller": "Mira"}),)


@pytest.mark.parametrize("given", [{}, {"patch": None}, {"patch": "legs"}, {"patch": {"legs": 3}}])
async def test_a_patch_that_cannot_be_is_a_result(given: Any) -> None:
    outcome = await call(root(), "updateState", given)
    assert (outcome.is_error, outcome.code, outcome.changes) == (True, "state_patch_invalid", ())


async def test_a_state_that_is_no_object_has_no_patch() -> None:
    node = Node("x", list[int])
    within = Charter("c", nodes={"n": node})
    outcome = await call(Instance(node, [1], id="r"), "updateState", {"patch": {}}, within=within)
    assert outcome.code == "state_patch_invalid"


# -- transitions ------------------------------------------------------------------


async def test_a_transition_gives_the_record_of_another_node() -> None:
    outcome = await call(root(), "transition", {"to": "billing", "reason": "acme"})
    assert outcome.changes == (
        Transitioned(instance_id="r", node={"ref": "billing"}, state={"account": "acme"}),
    )
    assert "Tell the user" in outcome.content


async def test_a_spawn_gives_ids_states_and_briefs() -> None:
    outcome = await call(root(traveller="Mira"), "transition_watch", {"leg": "Oslo", "reason": "asked"})
    child = NewChild(
        node={"ref": "fare_watch"},
        state={"leg": "Oslo", "limit": 50.0},
        id="new",
        brief="Watch Oslo for Mira",
    )
    assert outcome.changes == (Spawned(parent_instance_id="r", children=(child,)),)


async def test_a_worker_cedes_and_suspends() -> None:
    ceded = await call(root(watcher()), "transition", {"to": "report"}, leaf="w")
    assert ceded.changes == (Ceded(instance_id="w", content="Oslo is under 100.0"),)
    waits = await call(root(watcher()), "transition", {"to": "ask_buyer"}, leaf="w")
    (change,) = waits.changes
    assert isinstance(change, Suspended)
    assert change.suspend_info.suspend_id == "buy-77"
    assert change.suspend_info.metadata == {"price": 118}


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("transition", {"to": "bill", "reason": ""}, "unknown_transition"),
        ("transition", {}, "unknown_transition"),
        ("transition_watch", {"reason": "no leg"}, "invalid_tool_input"),
        ("transition_watch", {"leg": "Oslo", "limit": "much"}, "invalid_tool_input"),
        ("transition_nowhere", {}, "unknown_transition"),
    ],
)
async def test_a_transition_that_cannot_be_taken_is_a_result(name: str, given: Any, code: str) -> None:
    outcome = await call(root(), name, given)
    assert (outcome.is_error, outcome.code, outcome.changes) == (True, code, ())


inline_worker = Node(
    "x", dict, name="stray", worker=True, tools=[Tool("own", execute=print)], initial_state={}
)
second = Node("x", dict, name="second", initial_state={})


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (lambda: transition_to(fare_watch), "missing_target_state"),
        (lambda: transition_to(fare_watch, {"leg": 3}), "state_patch_invalid"),
        (lambda: spawn(fare_watch), "missing_target_state"),
        (lambda: spawn([(second, {}), (second, {})]), "two_primaries"),
        (lambda: spawn(second, {}, background=True), "two_primaries"),
        (lambda: spawn(inline_worker, {}), "unregistered_inline"),
        (lambda: cede({"not": "text"}), "bad_transition_result"),  # type: ignore[arg-type]
        (lambda: "desk", "bad_transition_result"),
        (lambda: None, "bad_transition_result"),
        (lambda: suspend("x", on_timeout="later"), "bad_transition_result"),  # type: ignore[arg-type]
        (lambda: 1 / 0, "tool_failed"),
    ],
)
async def test_a_result_that_cannot_be_leaves_the_tree_alone(result: Any, code: str) -> None:
    async def go(state: Any, context: Any) -> Any:
        return result()

    tree_, within = one(transitions={"go": create_transition(description="Go", execute=go)})
    outcome = await call(tree_, "transition", {"to": "go"}, within=within)
    assert (outcome.is_error, outcome.code, outcome.changes) == (True, code, ())


async def test_a_worker_may_not_become_a_second_primary() -> None:
    @transition("Go")
    def go() -> Any:
        return transition_to(second)

    worker = Node("x", dict, name="w", worker=True, transitions={"go": go})
    within = Charter("c", nodes={"w": worker, "second": second})
    beside = Instance(second, {}, [Instance(second, {}, id="p"), Instance(worker, {}, id="w")], id="r")
    alone = Instance(second, {}, Instance(worker, {}, id="w"), id="r")
    refused = await call(beside, "transition", {"to": "go"}, leaf="w", within=within)
    assert refused.code == "two_primaries"
    assert not (await call(alone, "transition", {"to": "go"}, leaf="w", within=within)).is_error


async def test_a_transition_to_the_same_node_is_a_real_one() -> None:
    @transition("Again")
    def again(state: Any) -> Any:
        return transition_to(loop, {"n": state["n"] + 1})

    loop = Node("x", dict, name="loop", transitions={"again": again})
    within = Charter("c", nodes={"loop": loop})
    before = Instance(loop, {"n": 1}, Instance(loop, {"n": 9}, id="c"), id="r")
    outcome = await call(before, "transition", {"to": "again"}, within=within)
    after = apply_changes(within, before, outcome.changes).root
    assert (after.id, after.state, after.children) == ("r", {"n": 2}, ())


async def test_a_spawn_of_nobody_changes_nothing() -> None:
    @transition("None")
    def none() -> Any:
        return spawn([])

    tree_, within = one(transitions={"none": none})
    outcome = await call(tree_, "transition", {"to": "none"}, within=within)
    assert (outcome.is_error, outcome.changes) == (False, ())


async def test_a_serial_transition_takes_the_initial_state_and_ignores_arguments() -> None:
    go = SerialTransition(desk, "Go", {"type": "object", "properties": {"why": {}}})
    tree_, within = one(transitions={"go": go})
    outcome = await call(tree_, "transition_go", {"args": {"why": 1}, "reason": ""}, within=within)
    assert outcome.changes == (
        Transitioned(instance_id="r", node={"ref": "desk"}, state={"legs": [], "traveller": ""}),
    )


async def test_a_model_may_define_the_node_itself() -> None:
    tree_, within = one(transitions={"new": GeneralTransition("Anything")})
    node = {
        "name": "poet",
        "instructions": "Write poems.",
        "validator": {"type": "object", "properties": {"lines": {"type": "integer"}}},
        "initialState": {"lines": 3},
        "tools": {"add_leg": {"ref": "desk.add_leg"}},
    }
    outcome = await call(tree_, "transition_new", {"node": node, "reason": ""}, within=within)
    after = apply_changes(within, tree_, outcome.changes).root
    assert (after.node.name, after.state) == ("poet", {"lines": 3})
    assert after.node.tools == {"add_leg": add_leg}
    missing = await call(tree_, "transition_new", {"reason": ""}, within=within)
    assert missing.code == "missing_inline_node"
    wrong = await call(
        tree_, "transition_new", {"node": {**node, "tools": {"x": {"ref": "no"}}}}, within=within
    )
    assert (wrong.code, 'unknown tool "no"' in wrong.content) == ("unknown_ref", True)


async def test_ceding_the_root_is_recorded_and_leaves_the_tree() -> None:
    @transition("Done")
    def done() -> Any:
        return cede("all done")

    tree_, within = one(transitions={"done": done})
    outcome = await call(tree_, "transition", {"to": "done"}, within=within)
    applied = apply_changes(within, tree_, outcome.changes)
    assert applied.root is tree_
    assert applied.ceded == (Ceded(instance_id="r", content="all done"),)


async def test_a_ceded_list_of_messages_is_recorded_as_data() -> None:
    @transition("Done")
    def done() -> Any:
        return cede([user_message("found it")])

    tree_, within = one(transitions={"done": done})
    (change,) = (await call(tree_, "transition", {"to": "done"}, within=within)).changes
    assert isinstance(change, Ceded)
    assert change.content == [{"role": "user", "items": "found it"}]


# -- all calls of one answer ------------------------------------------------------


async def pipeline(
    tree_: Instance[Any], *calls: tuple[str, Any], within: Charter = charter
) -> PipelineResult:
    asked = [ToolCall(f"c{i}", name, given) for i, (name, given) in enumerate(calls)]
    return await run_tool_pipeline(Caller(charter=within, leaf_id="r", new_id=lambda: "new"), tree_, asked)


def kinds(messages: tuple[Message, ...]) -> list[str]:
    return [getattr(m.items, "kind", m.role) for m in messages]


async def test_messages_of_one_answer_have_one_order() -> None:
    done = await pipeline(
        root(),
        ("transition_watch", {"leg": "Oslo", "reason": ""}),
        ("set_currency", {"currency": "NOK"}),
        ("add_leg", {"city": "Oslo"}),
        ("add_leg", {"city": "Turin"}),
    )
    assert kinds(done.messages) == ["state", "packState", "user", "spawn"]
    state, pack, results, _ = done.messages
    assert state.items == StatePatch(instance_id="r", patch={"legs": ["Oslo", "Turin"]})
    assert pack.items == PackPatch(pack_name="likes", patch={"currency": "NOK"})
    assert [item["tool_use_id"] for item in results.items] == ["c0", "c1", "c2", "c3"]  # type: ignore[index,union-attr]
    assert all(m.metadata.source is not None and m.metadata.source.instance_id == "r" for m in done.messages)
    assert done.reason == "tool_use"


async def test_later_calls_see_what_earlier_ones_changed_and_so_does_the_transition() -> None:
    done = await pipeline(
        root(),
        ("transition_watch", {"leg": "Oslo", "reason": ""}),
        ("updateState", {"patch": {"traveller": "Mira"}}),
    )
    assert done.root.children[0].brief == "Watch Oslo for Mira"


async def test_only_the_first_transition_counts() -> None:
    done = await pipeline(
        root(),
        ("transition", {"to": "billing", "reason": "acme"}),
        ("transition_watch", {"leg": "Oslo", "reason": ""}),
    )
    assert done.outcomes["c1"].code == "one_transition_per_turn"
    assert done.root.node is billing_desk


async def test_a_terminal_tool_ends_the_turn_after_the_transition() -> None:
    done = await pipeline(root(), ("goodbye", {}), ("transition", {"to": "billing", "reason": "acme"}))
    assert done.reason == "end_turn"
    assert done.root.node is billing_desk
    assert done.outcomes["c0"].content == ""


async def test_a_failing_terminal_tool_ends_nothing() -> None:
    assert (await pipeline(root(), ("goodbye", {"x": 1}))).reason == "tool_use"


async def test_a_refused_transition_is_told_and_the_turn_goes_on() -> None:
    done = await pipeline(root(), ("transition", {"to": "nowhere", "reason": ""}))
    assert done.reason == "tool_use"
    (results,) = done.messages
    assert results.items[0]["is_error"] is True  # type: ignore[index,typeddict-item]


async def test_a_success_says_nothing_about_errors() -> None:
    (_, results) = (await pipeline(root(), ("add_leg", {"city": "Oslo"}))).messages
    assert results.items == [{"type": "tool_result", "tool_use_id": "c0", "content": "added Oslo"}]


async def test_what_the_user_is_shown_is_one_message_after_the_results() -> None:
    @tool
    def show(text: str) -> Any:
        return tool_reply(text, "shown")

    tree_, within = one(show)
    done = await pipeline(tree_, ("show", {"text": "a"}), ("show", {"text": "b"}), within=within)
    assert kinds(done.messages) == ["user", "assistant"]
    assert done.messages[1].text == "ab"
    assert done.messages[1].metadata.tool_reply


async def test_replaying_the_records_gives_the_same_tree() -> None:
    start = root()
    done = await pipeline(
        start,
        ("add_leg", {"city": "Oslo"}),
        ("set_currency", {"currency": "NOK"}),
        ("transition_watch", {"leg": "Oslo", "reason": ""}),
    )
    records = [m.items for m in done.messages if m.role == "instance"]
    assert replayed(charter, start, records) == done.root  # type: ignore[arg-type]

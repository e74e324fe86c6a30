"""Which messages an instance sees, and how they reach a model."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from pydantic import BaseModel
from travel import desk, fare_watch, watcher

from flat.errors import CallRefused, StateError, TreeError
from flat.tree import (
    Instance,
    Message,
    Metadata,
    NewChild,
    Node,
    Output,
    Source,
    Spawned,
    StatePatch,
    assistant_message,
    command_item,
    command_message,
    ephemeral_message,
    get_message_text,
    instance_message,
    is_command,
    is_conversation_message,
    is_ref,
    is_resume,
    message_data,
    message_from_data,
    resume_item,
    system_message,
    tool_result,
    user_message,
)
from flat.tree.messages import messages_from, text_item
from flat.tree.prompt import BEGIN_NOTE, CONTINUE_NOTE
from flat.tree.request import answer_message, chat_messages, visible_messages

MINE, OTHER = Source(instance_id="w"), Source(instance_id="r")
FRAME: Any = {"type": "image", "mimeType": "image/png", "data": "AA=="}


def use(id: str, name: str = "look", **given: Any) -> Any:
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


# -- what an instance sees --------------------------------------------------------

HISTORY = [
    user_message("plan"),
    assistant_message("on it", source=OTHER),
    instance_message(
        Spawned(parent_instance_id="r", children=(NewChild(node={"ref": "fare_watch"}, state={}, id="w"),))
    ),
    assistant_message("watching", source=MINE),
    command_message([command_item("clear")]),
    system_message("x"),
    user_message("for you", to="w"),
    user_message("and you?"),
]


def seen(policy: Any) -> list[str]:
    node = Node("x", dict, worker=True, history=policy)
    return texts(visible_messages(HISTORY, Instance(node, {}, id="w", brief="Watch Oslo")))


def test_a_primary_sees_the_whole_conversation_and_nothing_for_the_machine() -> None:
    assert texts(visible_messages(HISTORY, Instance(desk, id="r"))) == [
        "plan",
        "on it",
        "watching",
        "for you",
        "and you?",
    ]


def test_a_worker_sees_its_brief_its_own_messages_and_those_addressed_to_it() -> None:
    leaf = watcher()
    assert texts(visible_messages(HISTORY, leaf)) == [BEGIN_NOTE, "watching", "for you"]
    assert seen(None) == ["Watch Oslo", "watching", "for you"]
    assert leaf.node is fare_watch


def test_other_policies_can_be_chosen() -> None:
    assert seen("shared") == ["plan", "on it", "watching", "for you", "and you?"]
    assert seen("since_spawn") == ["watching", "for you", "and you?"]
    assert seen(lambda history, leaf: history[:1]) == ["plan"]


def test_ephemeral_messages_are_seen_in_their_own_run_alone() -> None:
    history = [ephemeral_message("old"), user_message("hi"), ephemeral_message("new")]
    assert texts(visible_messages(history, Instance(desk), ephemeral_from=1)) == ["hi", "new"]


def test_each_frame_becomes_a_user_message_with_a_note() -> None:
    meta = Metadata(singleton="cam", singleton_frame_count=4)
    frames = ephemeral_message([FRAME, text_item("dropped")], metadata=meta)
    (message,) = visible_messages([frames], Instance(desk))
    assert message.role == "user"
    assert message.text == "Camera frame, the latest of 4:"
    assert message.items[1] == FRAME


# -- how it looks to a model ------------------------------------------------------


def test_results_stand_right_after_their_calls_wherever_they_were() -> None:
    chat = chat_messages(
        [
            user_message("go"),
            assistant_message([text_item("a"), use("1", leg="Åre"), use("2")]),
            assistant_message("b", source=OTHER),
            user_message("in between"),
            user_message([tool_result("2", "two"), tool_result("1", "one")]),
        ]
    )
    assert [m["role"] for m in chat] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert chat[1]["tool_calls"][0] == {
        "id": "1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"leg":"Åre"}'},
    }
    assert [(m["tool_call_id"], m["content"]) for m in chat[2:4]] == [("1", "one"), ("2", "two")]


def test_an_error_says_so() -> None:
    chat = chat_messages(
        [assistant_message([use("1")]), user_message([tool_result("1", "no", is_error=True)])]
    )
    assert chat[1]["content"] == "Error: no"


def test_calls_without_result_are_left_out_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chat = chat_messages([user_message("go"), assistant_message([use("1")])])
    assert chat == [{"role": "user", "content": "go"}]
    assert '"look" has no result' in caplog.text


def test_a_result_without_call_is_kept_as_text() -> None:
    assert chat_messages([user_message([tool_result("9", "lost")])]) == [
        {"role": "user", "content": "Result of an earlier call: lost"}
    ]


def test_runs_of_one_role_are_joined() -> None:
    chat = chat_messages(
        [
            user_message("a"),
            user_message("b"),
            assistant_message("c"),
            assistant_message("d"),
            user_message("e"),
        ]
    )
    assert [(m["role"], m["content"]) for m in chat] == [
        ("user", "a\n\nb"),
        ("assistant", "c\n\nd"),
        ("user", "e"),
    ]


def test_a_request_never_ends_with_the_model_itself() -> None:
    assert chat_messages([user_message("a"), assistant_message("b")])[-1] == {
        "role": "user",
        "content": CONTINUE_NOTE,
    }


def test_what_tools_showed_the_user_is_a_note_in_their_result() -> None:
    reply = assistant_message("a chart", metadata=Metadata(tool_reply=True))
    chat = chat_messages([assistant_message([use("1")]), user_message([tool_result("1", "drawn")]), reply])
    assert [m["role"] for m in chat] == ["assistant", "tool"]
    assert chat[1]["content"] == "drawn\n\n(The user was shown: a chart)"


def test_every_item_has_a_form() -> None:
    file: Any = {
        "type": "file",
        "url": "https://x/y.pdf",
        "mediaType": "application/pdf",
        "filename": "y.pdf",
    }
    output: Any = {"type": "output", "data": {"n": 1}}
    chat = chat_messages([user_message([text_item("see"), {**FRAME, "detail": "low"}, file, output])])
    assert chat == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "text", "text": "File y.pdf: https://x/y.pdf"},
                {"type": "text", "text": '{\n  "n": 1\n}'},
            ],
        }
    ]


def test_thinking_and_items_of_the_provider_go_back_unchanged() -> None:
    items: list[Any] = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "thinking", "thinking": "unsigned"},
        text_item("a"),
        {"type": "provider", "data": {"odd": 1}},
    ]
    (chat, _) = chat_messages([assistant_message(items)])
    assert chat["thinking_blocks"] == [items[0]]
    assert chat["provider_items"] == [{"odd": 1}]


@pytest.mark.parametrize("messages", [[], [user_message("")], [user_message([])], [system_message([])]])
def test_nothing_to_send_is_refused(messages: list[Message]) -> None:
    with pytest.raises(CallRefused) as caught:
        chat_messages(messages)
    assert caught.value.code == "empty_request"


# -- the answer -------------------------------------------------------------------


def test_an_answer_keeps_text_calls_and_thinking_in_order() -> None:
    message = answer_message(
        desk,
        "hello",
        [{"id": "1", "name": "add_leg", "arguments": {"city": "Oslo"}}],
        thinking=[{"type": "thinking", "thinking": "hm", "signature": "s", "noise": 1}],
        source=MINE,
    )
    assert message.items == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hello"},
        {"type": "tool_use", "id": "1", "name": "add_leg", "input": {"city": "Oslo"}},
    ]
    assert message.metadata.source == MINE


def test_structured_output_becomes_the_value_of_the_application() -> None:
    class Plan(BaseModel):
        days: int

    node = Node("x", dict, output=Output(Plan))
    assert answer_message(node, '{"days": 3}').items == [{"type": "output", "data": {"days": 3}}]
    with pytest.raises(StateError, match="not JSON"):
        answer_message(node, "three")


# -- messages themselves ----------------------------------------------------------


def test_text_is_joined_without_separator() -> None:
    assert get_message_text(assistant_message([text_item("a"), use("1"), text_item("b")])) == "ab"
    assert get_message_text(instance_message(StatePatch(instance_id="r", patch={}))) == ""


def test_every_constructor_takes_source_and_metadata_by_name() -> None:
    for make in (user_message, assistant_message, system_message, command_message, ephemeral_message):
        message = make("x", source=MINE, metadata={"messageId": "m"})
        assert (message.metadata.source, message.metadata.message_id) == (MINE, "m")


def test_ephemeral_messages_are_no_part_of_the_conversation() -> None:
    assert is_conversation_message(system_message("x"))
    assert not is_conversation_message(ephemeral_message("x"))


@pytest.mark.parametrize("message", HISTORY, ids=lambda m: m.role)
def test_messages_survive_the_wire(message: Message) -> None:
    assert message_from_data(message_data(message)) == message


def test_metadata_is_camel_case_on_the_wire() -> None:
    source = Source(instance_id="r", is_primary=False)
    data = message_data(user_message("x", source=source, silent=True))
    assert data == {
        "role": "user",
        "items": "x",
        "metadata": {"source": {"instanceId": "r", "isPrimary": False}, "silent": True},
    }


def test_an_ephemeral_message_is_stored_without_what_it_says() -> None:
    assert message_data(ephemeral_message([FRAME]))["items"] == []


@pytest.mark.parametrize(
    "data",
    [
        {"role": "robot", "items": "x"},
        {"role": "user", "items": 3},
        {"role": "instance", "items": "x"},
        {"role": "instance", "items": {"kind": "sede"}},
        {"role": "instance", "items": {"kind": "cede"}},
    ],
)
def test_data_that_is_no_message_is_refused(data: Any) -> None:
    with pytest.raises(TreeError):
        message_from_data(data)


def test_whatever_may_be_said_becomes_messages() -> None:
    made = messages_from(["hi", command_item("clear", instance_id="r"), resume_item("w", "s", "yes")])
    assert [m.role for m in made] == ["user", "command", "system"]
    assert messages_from(made[0]) == [made[0]]


def test_questions_about_plain_data() -> None:
    assert is_command(command_item("x"))
    assert not is_command({"type": "command"})
    assert is_resume(resume_item("w", "s"))
    assert not is_resume({"type": "resume", "instanceId": "w"})
    assert is_ref({"ref": "x"})
    assert not is_ref({"ref": 3})
    assert not is_ref("x")

"""Runs a command: finds it, checks its input, calls it, and records what it asks for. Nothing is changed here.

A command that fails asks for nothing, whatever it wrote before it failed. Nothing is raised to the caller: the
outcome says what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from flat.core.op import UNSET
from flat.errors import CallRefused, StateError, TreeError, did_you_mean
from flat.tree.apply import apply_changes, check_resumable, check_resume
from flat.tree.calls import awaited, pack_draft, written
from flat.tree.changes import Ceded, Change, Resumed, StatePatch
from flat.tree.charter import Charter
from flat.tree.commands import Command, CommandInfo, CommandResult, ResumeResult
from flat.tree.context import CommandContext, PackCommandContext
from flat.tree.instance import Instance, active_instance, get_path
from flat.tree.messages import Message
from flat.tree.pack import Pack
from flat.tree.results import Cede
from flat.tree.schema import json_schema_or_open
from flat.tree.state import Draft
from flat.tree.taking import change_of

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOutcome:
    """What a command gave, and the changes and messages it asks for."""

    success: bool
    value: Any = None
    error: str = ""
    code: str = ""
    changes: tuple[Change, ...] = ()
    messages: tuple[Message, ...] = ()

    def result(self) -> dict[str, Any]:
        """The outcome as its caller sees it."""
        if not self.success:
            return {"success": False, "error": self.error}
        return {"success": True, **({} if self.value is None else {"value": self.value})}


def get_available_commands(root: Instance[Any], instance_id: str | None = None) -> list[CommandInfo]:
    """The commands of an instance, or of the active one: its node's, then those of the packs it knows."""
    instance = get_path(root, instance_id or active_instance(root).id)[-1]
    commands = list(instance.node.commands.values())
    for pack in known_packs(instance):
        commands += pack.commands.values()
    return [CommandInfo(c.name, c.description, json_schema_or_open(c.schema)) for c in commands]


def known_packs(instance: Instance[Any]) -> Sequence[Pack[Any]]:
    """The packs whose commands an instance has: those it holds, and those of its node."""
    packs = {pack.name: pack for pack in (*instance.node.packs, *instance.packs)}
    return tuple(packs.values())


def doubt_of_command(root: Instance[Any], name: str, instance_id: str | None = None) -> str:
    """What is to happen when nobody knows whether a command was run."""
    try:
        return _found(get_path(root, instance_id or active_instance(root).id)[-1], name)[0].in_doubt
    except TreeError:  # which it tells when it is run
        return "retry"


async def perform_command(
    charter: Charter,
    root: Instance[Any],
    name: str,
    input: Any = None,
    *,
    instance_id: str | None = None,
    history: Sequence[Message] = (),
    new_id: NewId = lambda: str(uuid4()),
) -> CommandOutcome:
    """Run a command of an instance, or of the active one."""
    try:
        path = get_path(root, instance_id or active_instance(root).id)
        found, pack = _found(path[-1], name)
        try:
            value = found.schema.parse({} if input is None else input)
        except StateError as error:
            raise CallRefused(
                "invalid_command_input", f'invalid input for "{name}": {error.message}'
            ) from None
        if pack is not None:
            return await _pack_command(path, pack, found, value)
        return await _node_command(charter, root, path[-1], found, value, history, new_id)
    except TreeError as error:
        return CommandOutcome(success=False, error=error.message, code=error.code)
    except Exception as error:
        return CommandOutcome(success=False, error=str(error) or type(error).__name__, code="command_failed")


def _found(instance: Instance[Any], name: str) -> tuple[Command[..., Any], Pack[Any] | None]:
    if name in instance.node.commands:
        return instance.node.commands[name], None
    known = list(instance.node.commands)
    for pack in known_packs(instance):
        if name in pack.commands:
            return pack.commands[name], pack
        known += pack.commands
    hint = did_you_mean(name, known) or "it has none"
    raise CallRefused("command_not_found", f'"{instance.node.label}" has no command "{name}"; {hint}')


async def _node_command(
    charter: Charter,
    root: Instance[Any],
    instance: Instance[Any],
    command: Command[..., Any],
    value: Any,
    history: Sequence[Message],
    new_id: NewId,
) -> CommandOutcome:
    draft = Draft(instance.node.schema, instance.state)
    context: CommandContext[Any] = CommandContext(draft, instance_id=instance.id, messages=history)
    result = await awaited(command.invoke(value, context))
    changes: tuple[Change, ...] = ()
    if draft.touched:
        changes = (StatePatch(instance_id=instance.id, **written(draft)),)
    if isinstance(result, CommandResult):
        return CommandOutcome(success=True, value=result.payload, changes=changes, messages=result.messages)
    if isinstance(result, ResumeResult):
        resumed = Resumed(
            instance_id=instance.id, payload=UNSET if result.payload is UNSET else result.payload
        )
        if instance.suspended is not None:
            check_resumable(instance)
            check_resume(instance, resumed)
            changes = (*changes, resumed)
        return CommandOutcome(success=True, changes=changes)
    if isinstance(result, Cede) and instance.id == root.id:
        raise CallRefused("cannot_cede_root", "the root has no parent to cede to")
    if result is None:
        raise CallRefused(
            "bad_command_result",
            f'the command "{command.name}" returned nothing; return command_result(…) or a transition result',
        )
    after = apply_changes(charter, root, changes).root
    try:
        move = change_of(charter, after, instance.id, result, new_id=new_id)
    except CallRefused as refused:
        code = "bad_command_result" if refused.code == "bad_transition_result" else refused.code
        raise CallRefused(code, refused.message) from None
    moved = (*changes, move) if move is not None else changes
    content = move.content if isinstance(move, Ceded) else None
    return CommandOutcome(success=True, value=content, changes=moved)


async def _pack_command(
    path: tuple[Instance[Any], ...], pack: Pack[Any], command: Command[..., Any], value: Any
) -> CommandOutcome:
    draft, record = pack_draft(path, pack)
    context: PackCommandContext[Any] = PackCommandContext(draft)
    result = await awaited(command.invoke(value, context))
    changes = (record(draft),) if draft.touched else ()
    if result is None:
        return CommandOutcome(success=True, changes=changes)
    if not isinstance(result, CommandResult):
        raise CallRefused(
            "bad_command_result",
            f"a command of a pack returns command_result(…) or nothing, got {type(result).__name__}",
        )
    return CommandOutcome(success=True, value=result.payload, changes=changes, messages=result.messages)

"""What a leaf's model is told: the system prompt, and the exact words of every note the tree adds.

The prompt has a stable part (who you are) and a volatile one (what your state is), so that a provider can keep the
first and read only the second anew. Everything is computed from the tree as it stands; nothing is stored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flat.errors import TreeError
from flat.tree.charter import Charter
from flat.tree.instance import Instance, pack_state
from flat.tree.instructions import instruction_text
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.toolset import active_packs, resolved_transitions

CUT_OFF_NOTE = (
    "Your last answer was cut off because it was too long. Go on where it stopped, or say it in fewer words."
)
SPEAK_NOTE = "**After you take a transition, tell the user what happens now.**"
BEGIN_NOTE = "Begin with your task."
CONTINUE_NOTE = "Continue."
NUDGE_NOTE = (
    "You ended your turn, but your task is not handed over. Finish it and take a transition that cedes."
)
STEPS_LEFT = {
    2: "Note: two more steps after this one, then this turn ends. Plan your last tool calls.",
    1: "Warning: one more step after this one. Finish what you are doing.",
    0: "This is the last step of this turn. Answer now, without calling any tool.",
}

_log = logging.getLogger("flat.tree")


def resumed_note(node_label: str, reason: str) -> str:
    """What the history says when an instance goes on."""
    return f'"{node_label}" goes on; it had waited because: {reason}'


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """A system prompt in two blocks: what rarely changes, and what changes with every step."""

    stable: str
    volatile: str

    @property
    def text(self) -> str:
        return "\n\n".join(part for part in (self.stable, self.volatile) if part)


@dataclass(frozen=True, kw_only=True)
class PromptContext:
    """All that a custom prompt is made of. `default()` is the prompt that it replaces."""

    charter: Charter
    node: Node[Any]
    state: Any
    ancestors: Sequence[Instance[Any]] = ()
    """Root first, parent last."""
    packs: Sequence[Pack[Any]] = ()
    """The packs whose tools the leaf has."""
    pack_states: Mapping[str, Any] = field(default_factory=dict)
    leaf: Instance[Any] | None = None
    current_step: int = 0
    max_steps: int = 0

    def default(self) -> str:
        """The text that stands when nothing is customised."""
        return self.blocks().text

    def blocks(self) -> SystemPrompt:
        """The default prompt in its two blocks."""
        volatile = (
            state_section(self.state),
            transitions_section(self.charter, self.node),
            ancestors_section(self.charter, self.ancestors),
            packs_section(self.packs, self.pack_states),
            step_warning(self.current_step, self.max_steps),
        )
        stable = ((self.charter.instructions or "").strip(), node_instructions(self.node, self.state))
        return SystemPrompt(
            "\n\n".join(part for part in stable if part), "\n\n".join(part for part in volatile if part)
        )


def system_prompt(
    charter: Charter, path: Sequence[Instance[Any]], *, current_step: int = 0, max_steps: int = 0
) -> SystemPrompt:
    """The system prompt of the last instance of a path that begins at the root."""
    leaf = path[-1]
    edited = {pack.name: pack for instance in path for pack in instance.packs}
    packs = tuple(edited.get(pack.name, pack) for pack in active_packs(leaf.node))
    context = PromptContext(
        charter=charter,
        node=leaf.node,
        state=leaf.state,
        ancestors=tuple(path[:-1]),
        packs=packs,
        pack_states={pack.name: pack_state(tuple(path), pack) for pack in packs},
        leaf=leaf,
        current_step=current_step,
        max_steps=max_steps,
    )
    builder = leaf.node.build_system_prompt or charter.build_system_prompt
    return SystemPrompt("", builder(context)) if builder is not None else context.blocks()


def build_system_prompt(
    charter: Charter,
    node: Node[Any],
    state: Any,
    ancestors: Sequence[Instance[Any]] = (),
    pack_states: Mapping[str, Any] | None = None,
    *,
    packs: Sequence[Pack[Any]] | None = None,
    current_step: int = 0,
    max_steps: int = 0,
) -> str:
    """The system prompt of a node in a state, for those who have no tree at hand."""
    context = PromptContext(
        charter=charter,
        node=node,
        state=state,
        ancestors=tuple(ancestors),
        packs=active_packs(node) if packs is None else packs,
        pack_states=pack_states or {},
        current_step=current_step,
        max_steps=max_steps,
    )
    builder = node.build_system_prompt or charter.build_system_prompt
    return builder(context) if builder is not None else context.default()


# -- sections ---------------------------------------------------------------------


def node_instructions(node: Node[Any], state: Any) -> str:
    """The instructions for this state. Raises `TreeError` when the author's function does."""
    try:
        return instruction_text(node.instructions, state).strip()
    except Exception as error:
        raise TreeError(
            "instructions_failed", f'the instructions of node "{node.label}" failed: {error}'
        ) from error


def state_section(state: Any) -> str:
    return f"## Current Node State\n\n{fenced(state)}"


def transitions_section(charter: Charter, node: Node[Any]) -> str:
    lines = [
        f"- **{name}**: {entry.description}" for name, entry in resolved_transitions(charter, node).items()
    ]
    text = "## Available Transitions\n\n" + ("\n".join(lines) or "None")
    return f"{text}\n\n{SPEAK_NOTE}" if lines and not node.worker else text


def ancestors_section(charter: Charter, ancestors: Sequence[Instance[Any]]) -> str:
    """What is above: every ancestor's name and state, root first. The parent has distance 1."""
    if not ancestors:
        return ""
    parts = []
    for distance, ancestor in zip(range(len(ancestors), 0, -1), ancestors, strict=True):
        head = f"### Ancestor {distance}: {_ancestor_label(charter, ancestor)}"
        parts.append(f"{head}\n\nState: {indented(ancestor.state)}")
    return "\n\n".join(("## Ancestor Context", *parts))


def _ancestor_label(charter: Charter, ancestor: Instance[Any]) -> str:
    node = ancestor.node
    if name := node.name or charter.name_of(node):
        return name
    text = node_instructions(node, ancestor.state)
    return text if len(text) <= 100 else text[:100] + "..."


def packs_section(packs: Sequence[Pack[Any]], states: Mapping[str, Any]) -> str:
    """The packs whose tools the leaf has, each with its state."""
    if not packs:
        return ""
    return "\n\n".join(("## Active Packs", *(_pack(pack, states) for pack in packs)))


def _pack(pack: Pack[Any], states: Mapping[str, Any]) -> str:
    state = states[pack.name] if pack.name in states else pack.first_state()
    parts = [f"### {pack.name}", pack.description.strip()]
    if text := pack_instructions(pack, state):
        parts.append(f"Instructions:\n{text}")
    parts.append(f"State:\n{fenced(state)}")
    return "\n\n".join(part for part in parts if part)


def pack_instructions(pack: Pack[Any], state: Any) -> str:
    """A pack's instructions for its state; nothing, and a line in the log, when the author's function fails."""
    try:
        return instruction_text(pack.instructions, state).strip()
    except Exception:
        _log.warning(
            'the instructions of pack "%s" failed and are left out of the prompt', pack.name, exc_info=True
        )
        return ""


def step_warning(current_step: int, max_steps: int) -> str:
    """What the last three steps of a turn are told."""
    if not current_step or not max_steps:
        return ""
    return STEPS_LEFT.get(max_steps - current_step, "")


def indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def fenced(value: Any) -> str:
    return f"```json\n{indented(value)}\n```"

"""The instruction set."""

from __future__ import annotations

from typing import TypeAlias

from flat.core.ops.action import Action
from flat.core.ops.assign import Assign
from flat.core.ops.branch import Arm, Branch
from flat.core.ops.call import Call
from flat.core.ops.children import ChildCall, Children
from flat.core.ops.converse import Converse, Guardrails
from flat.core.ops.finish import Finish
from flat.core.ops.hook import Hook
from flat.core.ops.launch import Launch
from flat.core.ops.wait import Wait

AnyOp: TypeAlias = Action | Assign | Branch | Call | Children | Converse | Finish | Hook | Launch | Wait

__all__ = [
    "Action",
    "AnyOp",
    "Arm",
    "Assign",
    "Branch",
    "Call",
    "ChildCall",
    "Children",
    "Converse",
    "Finish",
    "Guardrails",
    "Hook",
    "Launch",
    "Wait",
]

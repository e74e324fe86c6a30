"""The instruction set."""

from __future__ import annotations

from typing import TypeAlias

from flat.core.ops.action import Action
from flat.core.ops.assign import Assign
from flat.core.ops.branch import Arm, Branch
from flat.core.ops.call import Call
from flat.core.ops.finish import Finish
from flat.core.ops.hook import Hook
from flat.core.ops.wait import Wait

AnyOp: TypeAlias = Action | Assign | Branch | Call | Finish | Hook | Wait

__all__ = ["Action", "AnyOp", "Arm", "Assign", "Branch", "Call", "Finish", "Hook", "Wait"]

"""The façade: load a machine, run it, look at what became of it."""

from flat.runtime.loading import load
from flat.runtime.machine import Machine
from flat.runtime.outcome import Outcome
from flat.runtime.runtime import Runtime

__all__ = ["Machine", "Outcome", "Runtime", "load"]

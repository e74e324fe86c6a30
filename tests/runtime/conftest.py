"""Makes `machines`, which these tests share, importable by its name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("runtime_machines", Path(__file__).with_name("machines.py"))
assert _spec is not None
assert _spec.loader is not None
sys.modules[_spec.name] = _module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

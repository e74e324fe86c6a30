"""What the worker machine of the tests does with a job."""

import os
import signal
from pathlib import Path

from flat import MachineHooks


class Jobs(MachineHooks):
    def on_action(self, state_name, action_name, context):
        match context["job"]["do"]:
            case "double":
                context["answer"] = context["job"]["n"] * 2
            case "fail":
                raise ValueError("this job cannot be done")
            case "die once":
                if not (mark := Path("died")).exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                context["answer"] = "survived"
        return context

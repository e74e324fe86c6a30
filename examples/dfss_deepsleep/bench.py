"""The test bench, and what fits into a night on it."""

from __future__ import annotations

from typing import Any

from flat import MachineHooks


class Bench(MachineHooks):
    def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        match action_name:
            case "choose":  # the shortest first
                left, batch = context["minutes"], []
                for job in sorted(context["queue"], key=lambda job: job["minutes"]):
                    if job["minutes"] <= left:
                        batch.append(job)
                        left -= job["minutes"]
                context["batch"] = batch
            case "run":
                job = context["job"]
                if job["name"] == "gear" and context["night"] == 1:
                    raise RuntimeError("the clamp slipped")
                context["load"] = job["minutes"] * 12  # newtons
            case "settle":
                passed = {name: one for name, one in context["ran"].items() if "_error" not in one}
                context["results"] = {**context["results"], **passed}
                context["queue"] = [job for job in context["queue"] if job["name"] not in passed]
        return context

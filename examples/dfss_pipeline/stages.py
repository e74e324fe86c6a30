"""The stages: plain functions of the context, which is checkpointed after each."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from flat import MachineHooks

HERE = Path(__file__).parent


class Stages(MachineHooks):
    def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        part = context["part"]
        match action_name:
            case "measure":
                context["values"] = [float(reading) for reading in readings(part)]
            case "clean":
                numbers = [reading for reading in readings(part) if reading.replace(".", "", 1).isdigit()]
                context["values"] = [float(number) for number in numbers]
                context["dropped"] = len(readings(part)) - len(numbers)
            case "analyse":
                middle, sigma = mean(context["values"]) + context["shift"], stdev(context["values"])
                margin = min(part["upper"] - middle, middle - part["lower"])
                context.update(
                    mean=round(middle, 4), sigma=round(sigma, 4), cpk=round(margin / (3 * sigma), 2)
                )
            case "centre":
                context["shift"] = round((part["upper"] + part["lower"]) / 2 - context["mean"], 4)
        return context


def readings(part: dict[str, Any]) -> list[str]:
    with (HERE / part["file"]).open(encoding="utf-8", newline="") as file:
        return [row["mm"] for row in csv.DictReader(file)]

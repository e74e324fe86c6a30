"""What meters are told of an agent's calls: names and attributes, read back from OpenTelemetry's own SDK."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import anyio, json
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))

from flat import FlatAgent, track_operation
from flat.testing.model_server import Reply, ScriptedModel

limits = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-limit-tokens": "100"}
usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}

async def main(url):
    config = {"name": "tagger", "user": "u", "model": {"name": "openai/m", "base_url": url}}
    agent = FlatAgent(config_dict={"spec": "flatagent", "data": config})
    for _ in range(2):
        await agent.call()
    with track_operation("sorting", size=2):
        pass

with ScriptedModel([Reply("hi", headers=limits, usage=usage), Reply(status=500)]) as model:
    anyio.run(main, model.base_url)
found = {}
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                value = getattr(point, "value", None)
                found.setdefault(metric.name, []).append([value, dict(point.attributes)])
print(json.dumps(found))
"""


def test_names_and_attributes() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    ours = {"agent_id": "tagger", "model": "openai/m", "backend": "litellm"}
    good, bad = {**ours, "status": "success"}, {**ours, "status": "error", "error_type": "AgentFailed"}
    assert found["flatagents.agent.executions"] == [[1, good], [1, bad]]
    assert [attributes for _, attributes in found["flatagents.agent.duration"]] == [good, bad]
    for name, value in {"tokens": 11, "input_tokens": 9, "output_tokens": 2, "cache_read_tokens": 4}.items():
        assert found[f"flatagents.agent.{name}"] == [[value, good]]
    assert found["flatagents.ratelimit.remaining_requests"] == [[59, good]]
    assert found["flatagents.ratelimit.limit_tokens"] == [[100, good]]
    assert found["flatagents.sorting.duration"][0][1] == {"status": "success", "size": 2}

"""Loading machines from files, folders and mappings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flat.errors import SpecError
from flat.spec import check_machine, load_machine, load_machine_dict
from flat.spec.lower import lower

QUICKSTART = Path(__file__).parent / "quickstart"
MACHINE = """\
spec: flatmachine
data:
  agents:
    a: {agent}
  states:
    start:
      agent: a
      transitions: [{{to: done}}]
    done: {{type: final}}
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_yml", ".yml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def codes(path: Path | str, **options: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_machine(path, **options)
    return [problem.code for problem in caught.value.problems if problem.severity == "error"]


def test_the_quick_start_loads_without_a_warning() -> None:
    source = load_machine(QUICKSTART)
    assert source.problems == []
    assert check_machine(source) == []
    assert source.machine.data.initial == "start"
    assert source.machine.data.generation == "2.5"
    assert sorted(source.files) == ["config/agent.yml", "config/machine.yml", "config/profiles.yml"]
    builder = source.agents["builder"]
    assert builder.label == "hello-world-agent"
    assert builder.model == {"profile": "fast"}
    assert builder.prompt is not None
    assert builder.prompt.value["user"].startswith("Target: {{ input.target }}")
    assert source.catalogue is not None
    assert source.catalogue.default == "fast"
    assert list(source.catalogue.profiles) == ["fast", "quality"]


def test_the_bundle_shape_reads_its_prompt_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml=MACHINE.format(agent="./agents/a.yml"),
        agents__a_yml="spec: flatagent\ndata: {name: tagger, prompt: ./p.yml, profile: cheap}\n",
        agents__p_yml="user: Hello {{ input.x }}\n",
        profiles_yml="model_profiles: {cheap: {name: m}}\ndefault: cheap\n",
    )
    agent = load_machine(tmp_path).agents["a"]
    assert agent.prompt is not None
    assert (agent.shape, agent.model, agent.label) == ("bundle", "cheap", "tagger")
    assert agent.prompt.value == {"user": "Hello {{ input.x }}"}


def test_a_prompt_file_may_have_an_envelope_and_may_stand_beside_the_machine(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml=MACHINE.format(agent="./agents/a.yml"),
        agents__a_yml="spec: flatagent\ndata: {prompt: ./p.yml, profile: cheap}\n",
        p_yml="spec: prompt\ndata: {name: said, user: Hello}\n",
    )
    assert load_machine(tmp_path).agents["a"].label == "said"


@pytest.mark.parametrize("name", ["machine.yml", "machine.yaml", "config/machine.yml", "loop.yml"])
def test_a_folder_stands_for_the_machine_in_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("spec: flatmachine\ndata: {states: {done: {type: final}}}\n")
    (tmp_path / "other.yml").write_text("a: 1\n")
    assert load_machine(tmp_path).document.file == path.as_posix()


def test_a_folder_with_two_machines_or_none_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path) == ["missing-file"]
    write(tmp_path, a_yml="spec: flatmachine\n", b_yml="spec: flatmachine\n")
    assert codes(tmp_path) == ["missing-file"]
    assert codes(tmp_path / "c.yml") == ["missing-file"]


def test_json_machines_load(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        '{"spec": "flatmachine", "data": {"states": {"done": {"type": "final"}}}}'
    )
    assert load_machine(tmp_path / "m.json").machine.data.initial == "done"


@pytest.mark.parametrize(
    "ref", ["../out.yml", "../../out.yml", "/etc/passwd", "~/x.yml", "link.yml", "dir/x.yml"]
)
def test_nothing_outside_the_project_is_read(tmp_path: Path, ref: str) -> None:
    (tmp_path / "out.yml").write_text("spec: flatagent\ndata: {user: stolen}\n")
    home = write(tmp_path / "project", machine_yml=MACHINE.format(agent=ref))
    (home / "link.yml").symlink_to(tmp_path / "out.yml")
    (home / "dir").symlink_to(tmp_path)
    assert codes(home) == ["outside"]


def test_the_parent_of_a_config_folder_is_the_root(tmp_path: Path) -> None:
    write(
        tmp_path,
        config__machine_yml=MACHINE.format(agent="../a.yml"),
        a_yml="spec: flatagent\ndata: {user: x}\n",
    )
    assert sorted(load_machine(tmp_path).files) == ["a.yml", "config/machine.yml"]


def test_further_roots_can_be_named(tmp_path: Path) -> None:
    common = write(tmp_path / "common", a_yml="spec: flatagent\ndata: {user: x}\n")
    for ref in ("../common/a.yml", str(common / "a.yml")):
        home = write(tmp_path / "project", machine_yml=MACHINE.format(agent=ref))
        assert codes(home) == ["outside"]
        assert str(common / "a.yml") in load_machine(home, roots=[common]).files


def test_a_device_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, machine_yml=MACHINE.format(agent="./pipe.yml"))
    os.mkfifo(tmp_path / "pipe.yml")
    assert codes(tmp_path) == ["missing-file"]


def test_a_missing_agent_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, machine_yml=MACHINE.format(agent="./gone.yml"))
    assert codes(tmp_path) == ["missing-file"]


def test_a_missing_agent_file_can_wait_when_its_states_handle_errors(tmp_path: Path) -> None:
    text = MACHINE.format(agent="./gone.yml").replace("agent: a\n", "agent: a\n      on_error: done\n")
    source = load_machine(write(tmp_path, machine_yml=text))
    assert [problem.severity for problem in source.problems] == ["warning"]
    assert source.agents["a"].problem is not None
    assert source.agents["a"].problem.severity == "error"


def test_the_catalogue_can_be_named_by_the_caller_or_by_the_file(tmp_path: Path) -> None:
    inline = MACHINE.format(agent="{spec: flatagent, data: {user: x}}")
    named = inline.replace("data:\n", "data:\n  profiles: p.yml\n", 1)
    write(
        tmp_path,
        machine_yml=named,
        p_yml="spec: flatprofile\ndata: {model_profiles: {one: {name: m}}}\n",
        q_yml="spec: flatprofiles\ndata: {model_profiles: {two: {name: m}}}\n",
    )
    by_file, by_caller = load_machine(tmp_path), load_machine(tmp_path, profiles_file="q.yml")
    assert by_file.catalogue is not None
    assert by_caller.catalogue is not None
    assert (list(by_file.catalogue.profiles), list(by_caller.catalogue.profiles)) == (["one"], ["two"])
    assert codes(tmp_path, profiles_file="gone.yml") == ["missing-file"]


def test_an_unknown_profile_is_an_error_and_lists_the_known_ones(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml=MACHINE.format(agent="{spec: flatagent, data: {user: x, model: {profile: fats}}}"),
        profiles_yml="spec: flatprofile\ndata: {model_profiles: {fast: {name: m}}, default: fast}\n",
    )
    assert codes(tmp_path) == ["unknown-profile"]
    assert 'did you mean "fast"?' in load_machine(tmp_path, compat=True).problems[0].hint


def test_a_secret_in_a_catalogue_is_warned_of_and_not_shown(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml=MACHINE.format(agent="{spec: flatagent, data: {user: x}}"),
        profiles_yml="model_profiles:\n"
        "  a: {name: m, api_key: sk-abcdefgh12345678}\n"
        "  b: {api_key: '${env:KEY}'}\n",
    )
    (problem,) = load_machine(tmp_path).problems
    assert problem.code == "secret"
    assert "sk-abc" not in str(problem)


def test_typed_agents_read_their_file_and_inline_options_win(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml=MACHINE.format(agent="{type: claude-code, ref: ./c.json, config: {model: opus}}"),
    )
    (tmp_path / "c.json").write_text('{"model": "haiku", "turns": 3}')
    agent = load_machine(tmp_path).agents["a"]
    assert (agent.type, agent.config, agent.ref) == ("claude-code", {"model": "opus", "turns": 3}, None)


def test_problems_in_all_files_come_together_in_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml=MACHINE.format(agent="./a.yml").replace("to: done", "to: doen"),
        a_yml="spec: flatagent\ndata: {usr: x}\n",
        profiles_yml="spec: flatprofile\ndata: {model_profile: {}}\n",
    )
    with pytest.raises(SpecError) as caught:
        load_machine(tmp_path)
    assert {Path(str(p.location.file)).name for p in caught.value.problems if p.location} == {
        "machine.yml",
        "a.yml",
        "profiles.yml",
    }


def test_a_mapping_loads_and_its_problems_name_the_keys() -> None:
    config = {
        "spec": "flatmachine",
        "data": {"states": {"start": {"transitions": [{"to": "doen"}]}, "done": {"type": "final"}}},
    }
    with pytest.raises(SpecError, match=r"data\.states\.start\.transitions\.0\.to: there is no state"):
        load_machine_dict(config)
    assert load_machine_dict(config, compat=True).problems[0].location is None


def test_a_mapping_is_not_changed_and_finds_files_from_its_folder() -> None:
    config: dict[str, Any] = {
        "spec": "flatmachine",
        "data": {"agents": {"a": "./agent.yml"}, "states": {"s": {"agent": "a", "type": "final"}}},
    }
    source = load_machine_dict(config, QUICKSTART / "config")
    assert source.agents["a"].label == "hello-world-agent"
    assert config["data"]["agents"] == {"a": "./agent.yml"}


def test_sections_without_a_value_count_as_absent(tmp_path: Path) -> None:
    sections = "".join(
        f"  {name}:\n" for name in ("context", "agents", "machines", "settings", "persistence", "hooks")
    )
    states = "  states:\n    done:\n      type: final\n      output:\n"
    write(tmp_path, machine_yml=f"spec: flatmachine\ndata:\n{sections}{states}")
    assert load_machine(tmp_path).machine.data.context == {}


def test_a_version_without_quotes_is_text(tmp_path: Path) -> None:
    write(
        tmp_path, machine_yml="spec: flatmachine\nspec_version: 4.2\ndata: {states: {done: {type: final}}}\n"
    )
    assert load_machine(tmp_path).machine.spec_version == "4.2"


def test_machine_files_that_are_referred_to_are_found_and_not_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        machine_yml="spec: flatmachine\ndata: {machines: {c: ./c.yml}, states: {done: {type: final}}}\n",
        c_yml="not a machine",
    )
    source = load_machine(tmp_path)
    assert source.machines["c"].path == tmp_path / "c.yml"
    assert list(source.files) == ["machine.yml"]


def test_reading_needs_no_pydantic() -> None:
    code = "import sys, flat.spec.load, flat.spec.sources; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("value", [10**30, object(), "\ud800"])
def test_a_value_from_python_that_cannot_be_stored_is_refused(value: Any) -> None:
    for where in ({"context": {"a": value}}, {"hooks": {"name": "h", "args": {"a": value}}}):
        data = {"states": {"done": {"type": "final"}}, **where}
        with pytest.raises(SpecError, match="a value of the config cannot be stored"):
            lower(load_machine_dict({"spec": "flatmachine", "data": data}))


@pytest.mark.parametrize("field", ["agents", "machines"])
def test_a_path_that_is_too_long_is_no_path(tmp_path: Path, field: str) -> None:
    file = tmp_path / "m.yml"
    file.write_text(
        f"spec: flatmachine\ndata:\n  {field}: {{x: {'x' * 5000}}}\n  states: {{done: {{type: final}}}}\n",
        encoding="utf-8",
    )
    with pytest.raises(
        SpecError, match=r"m\.yml:3:\d+: error\[path\]: 'x+' is not a path: File name too long"
    ):
        load_machine(file)
    with pytest.raises(SpecError, match="is not a path: File name too long"):
        load_machine("x" * 5000)


@pytest.mark.parametrize("config", ["spec: flatmachine", [1], None])
def test_a_config_that_is_no_mapping_is_refused(config: Any) -> None:
    with pytest.raises(SpecError, match=r"error.spec.: the file is (not a mapping|empty)"):
        load_machine_dict(config)

"""Files: what is written is what runs, and what cannot be used gets one line with its place."""

import json

import pytest
import yaml

from doge_lab import config
from doge_lab.config import load
from doge_lab.errors import UserError
from doge_lab.identity import fingerprint

RUN = {
    "model": {"d_model": 16, "layers": [{"sequence": {"type": "attention", "n_heads": 2}, "state": "mlp"}]},
    "tasks": [
        {"type": "capacity", "n_entities": 32, "n_values": 2, "n_tokens": 16},
        {"type": "recall", "n_tokens": 64},
    ],
}


def changed(**changes):
    return {**RUN, **changes}


def test_json_and_yaml_are_the_same(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "run.json").write_text(json.dumps(RUN, indent="\t"))
    assert load(tmp_path / "run.yaml") == load(tmp_path / "run.json")


def test_the_vocabulary_comes_from_the_tasks():
    assert config.parse(RUN).resolved().model.vocab_size == 64
    larger = changed(model={**RUN["model"], "vocab_size": 100})
    assert config.parse(larger).resolved().model.vocab_size == 100


def test_a_resolved_run_survives_its_dump_and_resolves_to_itself():
    resolved = config.parse(changed(match={"params": 9_000})).resolved()
    again = config.parse(json.loads(json.dumps(resolved.dump())))
    assert again == resolved == again.resolved()
    assert fingerprint(again) == fingerprint(resolved)


def test_the_fingerprint_ignores_seed_and_name_and_nothing_else():
    run = config.parse(RUN).resolved()
    assert fingerprint(run) == fingerprint(run.model_copy(update={"seed": 5, "name": "other"}))
    assert fingerprint(run) != fingerprint(config.parse(changed(train={"lr": 0.02})).resolved())


def test_a_task_may_train_differently():
    run = config.parse(changed(tasks=[{**RUN["tasks"][0], "train": {"steps": 7}}, RUN["tasks"][1]]))
    assert [run.train_config(task).steps for task in run.tasks] == [7, 400]


def test_overrides_reach_every_depth(run_file):
    run = load(run_file, ["seed=3", "model.layers.0.state.d_hidden=7", "model.layers.0.sequence=none", "train.lr=1e-3"])
    assert (run.seed, run.model.layers[0].sequence.type, run.train.lr) == (3, "none", 1e-3)


def layer(**changes):
    return changed(model={"d_model": 16, "layers": [{"sequence": "none", "state": "mlp", **changes}]})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (layer(sequence="atention"), "model.layers.0.sequence.type: no sequence block is named 'atention'"),
        (layer(state={"type": "mlp", "d_hiden": 3}), "model.layers.0.state: unknown option 'd_hiden'; did you mean"),
        (layer(state={"type": "mlp", "d_hidden": 0}), "model.layers.0.state.d_hidden: input should be greater than 0"),
        (layer(state={"type": "mlp", "activation": "gelo"}), "model.layers.0.state.activation: input should be 'gelu'"),
        (layer(statee="mlp"), "model.layers.0: unknown option 'statee'; did you mean 'state'?"),
        (layer(state=7), "model.layers.0.state: a state block is a name or a mapping with `type`, not 7"),
        (changed(train={"steps": -1}), "train.steps: input should be greater than 0, not -1"),
        (changed(train={"lr": float("nan")}), "train.lr: input should be"),
        (changed(seed=-1), "seed: input should be greater than or equal to 0, not -1"),
        (
            changed(tasks=[{"type": "capacity", "train": {"step": 3}}]),
            "tasks.0.train: unknown option 'step'; did you mean 'steps'?",
        ),
        (changed(tasks=["capacity", "capacity"]), "tasks: two tasks are called 'capacity'"),
        (changed(model={**RUN["model"], "vocab_size": 8}), "model.vocab_size: 8 is smaller than the 64 tokens"),
        (changed(match={"params": 3}), "match: no width of layers.0.state.d_hidden gives params=3"),
        (
            layer(sequence={"type": "attention", "n_heads": 5}),
            "model.layers.0.sequence: d_model=16 must be divisible by n_heads=5",
        ),
        ({"tasks": []}, "model: field required"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(written, message):
    with pytest.raises(UserError) as caught:
        config.parse(written).resolved()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"- 1\n", "must hold a mapping such as `model: ...`, not a list"),
        (b"\xff\xfe\x00\x01", "this is not a text file"),
        (b"a\0b", "this is not a text file"),
        (b"model: [\n", "not valid YAML at line"),
        (b"seed: 1\nseed: 2\n", "not valid YAML at line 2: 'seed' is written twice"),
        (b"x: !!python/object/apply:os.system ['true']\n", "not valid YAML at line 1"),
        (
            b"a: &a [1,2,3,4,5,6,7,8,9,0]\n"
            + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in b"abcdef"),
            "holds more than 20,000 values, aliases written out, which no configuration does",
        ),
        (b"model: &a [*a]\n", "an alias in it refers to itself"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_written_twice_in_json_is_an_error_too(tmp_path):
    (tmp_path / "bad.json").write_text('{"seed": 1, "model": {}, "seed": 2}')
    with pytest.raises(UserError, match=r"bad\.json: 'seed' is written twice"):
        load(tmp_path / "bad.json")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="this is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "'seed' must look like path.to.0.key=value"),
        ("model.layers.3.state=mlp", "'3' is not an index below 1"),
        ("model.layers.x.state=mlp", "'x' is not an index below 1"),
        ("model.d_model.x=1", "'d_model' is 16, which holds nothing below it"),
        ("seed=[", "'seed=[': not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere_is_named(run_file, override, message):
    with pytest.raises(UserError, match="--set") as caught:
        load(run_file, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(("key", "command"), [("arms", "doge-lab compare"), ("search", "doge-lab search")])
def test_a_file_of_another_command_names_it(tmp_path, key, command):
    (tmp_path / "run.yaml").write_text(f"{key}: {{}}\n")
    with pytest.raises(UserError, match=command):
        load(tmp_path / "run.yaml")

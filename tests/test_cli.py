"""The commands as typed: what they print, how they end, and that a mistake is one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doge_lab.cli import main

MODEL = """\
model:
  d_model: 64
  layers:
    - repeat: 2
      sequence: {type: inner_func_attn, n_heads: 4, n_inner_values: 64}
      state: {type: cdmoe, n_experts: 256}
tasks:
  - {type: capacity}
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    return path


def answer(capsys, *words, code=0):
    assert main([str(word) for word in words]) == code
    return json.loads(capsys.readouterr().out)


def complaint(capsys, *words):
    """The one line that a mistake gets; argparse exits by itself."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def test_blocks_json(capsys):
    blocks = answer(capsys, "blocks", "--json")
    assert {"attention", "inner_func_attn", "gated_linear_attention", "short_conv", "cdmoe", "mlp", "glu", "moe"} <= {
        block["name"] for block in blocks
    }
    for block in blocks:
        assert set(block) >= {"name", "kind", "summary", "source"}
        assert block["kind"] in ("sequence", "state")
    assert all(block["kind"] == "state" for block in answer(capsys, "blocks", "--kind", "state", "--json"))
    (moe,) = [block for block in answer(capsys, "blocks", "--options", "--json") if block["name"] == "moe"]
    assert {"name": "n_experts", "default": 8, "description": "Experts to choose from."} in moe["options"]
    assert moe["width_option"] == "d_expert"


def test_describe_measures_what_it_declares(capsys, model_file):
    facts = answer(capsys, "describe", model_file, "--context", 300, "--measure", "--json")
    assert facts["cache_bytes_held"] == facts["cache_bytes"] == 2 * 300 * 2 * 64 * 2
    assert {"params", "active_params", "flops_per_token", "embedding_params"} <= set(facts)
    assert len(facts["layers"]) == 2
    for name in ("params", "active_params", "flops_per_token", "cache_bytes"):
        in_layers = sum(layer[kind][name] for layer in facts["layers"] for kind in ("sequence", "state"))
        assert 0 < in_layers <= facts[name]


def test_describe_without_tasks_needs_a_vocabulary(capsys, tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("model: {d_model: 16, layers: [{sequence: attention, state: mlp}]}\n")
    assert "bare.yaml: model.vocab_size: vocab_size is needed" in complaint(capsys, "describe", path)
    facts = answer(capsys, "describe", path, "--set", "model.vocab_size=50", "--json")
    assert facts["context"] == 2048


def test_train_writes_a_record_and_answers_in_json(capsys, run_file, tmp_path):
    out = tmp_path / "out"
    facts = answer(capsys, "train", run_file, "--set", "seed=1", "--out", out, "--json")
    assert facts["seed"] == 1
    assert facts["seeds"] == 1
    assert set(facts["tasks"]) == {"capacity", "recall"}
    assert (out / "capacity" / "record.jsonl").exists()
    assert answer(capsys, "train", run_file, "--set", "seed=1", "--out", out, "--json") == facts
    assert "holds another run" in complaint(capsys, "train", run_file, "--set", "seed=2", "--out", out)


def test_train_prints_a_table_that_says_one_seed(capsys, run_file, tmp_path):
    assert main(["train", str(run_file), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "bits/active param" in printed
    assert "One seed (0), so no interval." in printed


@pytest.mark.slow
def test_a_front_model_is_rebuilt_by_its_run_file(tmp_path, request, capsys):
    out = tmp_path / "out"
    space = request.config.rootpath / "search_spaces" / "tiny.yaml"
    found = answer(capsys, "search", space, "--trials", 1, "--workers", 1, "--out", out, "--json")
    (entry,) = found["front"]
    rebuilt = answer(capsys, "train", out / entry["run_file"], "--out", tmp_path / "again", "--json")
    assert rebuilt["tasks"]["recall"]["bits"] == entry["confirmed"][0]["recall.bits"]
    assert rebuilt["cost"]["cache_bytes"] == entry["values"]["cache_bytes"]
    (out / "report.html").unlink()
    assert answer(capsys, "report", out, "--json") == found["front"]
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "absent.yaml"], "absent.yaml: no such file"),
        (["describe", "."], "this is a folder"),
        (
            ["describe", "FILE", "--set", "model.layers.0.sequence.n_head=3"],
            "unknown option 'n_head'; did you mean 'n_heads'?",
        ),
        (
            ["describe", "FILE", "--set", "model.d_model=-1"],
            "FILE: model.d_model: input should be greater than or equal to 1, not -1",
        ),
        (["describe", "FILE", "--set", "model.d_model=63"], "model.layers.0.sequence: d_model=63 must be divisible by"),
        (
            ["describe", "FILE", "--set", "model.layers.0.state=mlpp"],
            "no state block is named 'mlpp'; did you mean 'mlp'?",
        ),
        (["describe", "FILE", "--context", "0"], "--context: must be between 1 and 1,000,000,000, not 0"),
        (
            ["train", "FILE", "--set", "match.params=5"],
            "FILE: match: no width of layers.0.state.d_cross_domain gives params=5",
        ),
        (["train", "FILE", "--device", "cuda:99"], "--device: device 'cuda:99' cannot be used here"),
        (["train", "FILE", "--device", "gpu"], "--device: device 'gpu' cannot be used here"),
        (["train", "FILE", "--threads", "0"], "--threads: must be between 1 and 1,024, not 0"),
        (
            ["train", "FILE", "--set", "tasks=[]", "--set", "model.vocab_size=9"],
            "FILE: tasks: there is nothing to train on",
        ),
        (["train", "FILE", "--set", "model.layers.0.state={type: 'os:path'}"], "say --allow-import os"),
        (["train", "FILE", "--set", "name=../../elsewhere"], "FILE: name: '../../elsewhere' cannot be a folder's name"),
        (["train", "FILE", "--device", "meta"], "--device: device 'meta' cannot be used here"),
        (
            ["describe", "FILE", "--set", "model.d_model=1000000000"],
            "model.d_model: input should be less than or equal to",
        ),
        (["describe", "FILE", "--set", "model.layers=[]"], "model.layers: "),
        (["describe", "FILE", "--set", "model.layers.²=1"], "'²' is not an index below 1"),
        (["describe", "FILE", "--set", "seed=2024-13-45"], "seed: input should be a valid integer, not '2024-13-45'"),
        (
            ["describe", "FILE", "--set", "match={params: 9, width: [layers.0.state.d_hidden.x]}"],
            "is not a place in the model",
        ),
        (["describe", "FILE", "--set", "train.betas=[1.0, 0.9]"], "train.betas.0: input should be less than 1"),
        (
            ["describe", "FILE", "--set", "tasks.0.n_name_tokens=12"],
            "tasks.0.n_name_tokens: names of 12 tokens are longer",
        ),
        (
            [
                "describe",
                "FILE",
                "--set",
                "model.positions=learned",
                "--set",
                "model.max_positions=16",
                "--context",
                "32",
            ],
            "model.max_positions: 16 is less than 32 tokens",
        ),
        (["check", ":a"], "':a' must look like package.module:Class"),
        (["check", "mlp", "--d-model", "0"], "--d-model: must be between 1 and 4,096"),
        (["search", "FILE", "--seed", "-1"], "--seed: must be between 0 and"),
        (["report", "x" * 300], "cannot be read: File name too long"),
        (["search", "FILE"], "FILE: a search space needs `search:`"),
        (["report", "absent"], "absent holds no study.db"),
        (["check", "atention"], "no block is named 'atention'; did you mean 'attention'?"),
        (["check"], "name one block, or say --all"),
        (["check", "attention", "--set", "n_heads=5"], "Attention: d_model=32 must be divisible by n_heads=5"),
        (["trian", "FILE"], "invalid choice: 'trian'"),
        (["describe"], "the following arguments are required: FILE.yaml"),
    ],
)
def test_a_mistake_is_one_line(capsys, model_file, words, message):
    words = [str(model_file) if word == "FILE" else word for word in words]
    assert message.replace("FILE:", f"{model_file}:") in complaint(capsys, *words)


def test_check_passes_a_good_block_and_fails_a_bad_one(capsys, strange):
    results = answer(capsys, "check", "mlp", "--json")
    assert all(result["passed"] for result in results)
    assert all({"name", "passed", "message"} <= set(result) for result in results)
    results = answer(capsys, "check", strange("FailsTheContract")["type"], "--json", code=1)
    assert "tokens_independent" in {result["name"] for result in results if not result["passed"]}


def test_schema_accepts_what_we_ship_and_names_every_block(capsys, request):
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    schema = answer(capsys, "schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for file in sorted((request.config.rootpath / "search_spaces").glob("*.yaml")):
        content = yaml.safe_load(file.read_text())
        assert not list(validator.iter_errors(content)), file.name
        content["model"]["layers"][0]["sequence"] = {"type": "attention", "n_hed": 3}
        assert list(validator.iter_errors(content)), "a misspelt option passes"
    run = answer(capsys, "schema", "--of", "run")
    jsonschema.Draft202012Validator(run).validate(yaml.safe_load(MODEL))


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from doge_lab.cli.program import build_parser; build_parser(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "doge_lab", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    assert min(times) < 2  # a tripwire against an eager import, which costs more; the figure itself is in benchmarks/


@pytest.mark.parametrize(("name", "code"), [("Raises", 2), ("Prints", 0)])
def test_what_a_block_does_in_training_stays_out_of_the_facts(tmp_path, run_file, strange, capsys, name, code):
    run_file.write_text(run_file.read_text().replace("state: mlp", f"state: {{type: 'strange:{name}'}}"))
    words = ["train", str(run_file), "--out", str(tmp_path / "out"), "--allow-import", "strange", "--json"]
    assert main(words) == code
    said = capsys.readouterr()
    if code == 0:
        assert json.loads(said.out)["tasks"]["capacity"]["max_bits"] == 256
    else:
        assert said.out == ""
        assert said.err.splitlines()[-1].startswith("doge-lab: capacity: a block raised RuntimeError: a block's own")
        assert "Traceback" in (tmp_path / "out" / "capacity" / "error.txt").read_text()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_without_the_characters_gets_question_marks(encoding):
    words = [sys.executable, "-m", "doge_lab", "tasks", "mano"]
    ran = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_an_output_that_is_full_or_closed_is_no_traceback():
    def ran(command):
        return subprocess.run(command.format(sys.executable), shell=True, capture_output=True, text=True)

    full = ran("{} -m doge_lab tasks > /dev/full")
    assert (full.returncode, full.stderr) == (2, "doge-lab: output: No space left on device\n")
    assert ran("{} -m doge_lab schema | head -c 1").stderr == ""

"""The shelf as a whole: its table in the docs is true, and any blocks make a model that trains, decodes and saves."""

import ast
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from doge_lab import registry
from doge_lab.block import SequenceBlock
from doge_lab.cache import nbytes
from doge_lab.model import CausalLM, ModelConfig
from doge_lab.search.config import load_space
from doge_lab.train import save_tensors

ROOT = Path(__file__).parent.parent
NAMES = {kind: [name for name in registry.names(kind) if name != "none"] for kind in registry.KINDS}
D_MODEL = 64


def oracles():
    """(kind, name) -> what the block's parity test compares it with, read from the constants of that test."""
    found = {}
    for file in (ROOT / "tests" / "parity").glob("test_*.py"):
        constants = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("BLOCK", "ORACLE")
        }
        if constants:
            found[tuple(constants["BLOCK"].split("/"))] = constants["ORACLE"]
    return found


def row(kind, name, oracle):
    block = registry.get(kind, name)(D_MODEL)
    cells = [f"`{name}`", f"{block.num_params():,}"]
    if isinstance(block, SequenceBlock):
        cells += [f"{nbytes(block.cache_spec(), tokens, torch.float32):,}" for tokens in (64, 4096)]
    else:
        cells += [f"{block.active_params():,}"]
    return "| " + " | ".join([*cells, oracle]) + " |"


def test_the_table_in_the_docs_is_true():
    found = oracles()
    missing = [f"{kind}/{name}" for kind in NAMES for name in NAMES[kind] if (kind, name) not in found]
    assert not missing, f"no parity test names its BLOCK and ORACLE for {missing}"
    page = (ROOT / "docs" / "shelf.md").read_text(encoding="utf-8")
    rows = [row(kind, name, found[kind, name]) for kind in NAMES for name in NAMES[kind]]
    wrong = [line for line in rows if line not in page.splitlines()]
    assert not wrong, "docs/shelf.md lacks these rows:\n" + "\n".join(wrong)
    assert page.count("\n| `") == len(rows), "docs/shelf.md has rows of blocks that are gone"


def model_of(layers):
    written = [{"sequence": sequence, "state": state} for sequence, state in layers]
    return CausalLM.build(ModelConfig(vocab_size=13, d_model=32, layers=written), seed=0)


def pairs():
    """Every sequence block and every state block at least once, each beside another."""
    sequence, state = NAMES["sequence"], NAMES["state"]
    count = max(len(sequence), len(state))
    return [(sequence[index % len(sequence)], state[index % len(state)]) for index in range(count)]


def hybrids():
    rng = random.Random(0)
    return [[(rng.choice(NAMES["sequence"]), rng.choice(NAMES["state"])) for _ in range(4)] for _ in range(3)]


@pytest.mark.parametrize("layers", [*[[pair] for pair in pairs()], *hybrids()], ids=str)
def test_any_blocks_make_a_model_that_trains_decodes_and_saves(layers, tmp_path):
    model, tokens = model_of(layers), torch.randint(13, (2, 12), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        (loss + sum(stats.loss for stats in model.collect_router_stats())).backward()
        optimizer.step()
        model.after_step()
    assert loss < before
    model.eval()
    with torch.inference_mode():
        whole = model(tokens)
        cache = model.init_cache(batch=2, capacity=12, dtype=torch.float32)
        steps = [model(tokens[:, t : t + 1], cache=cache) for t in range(12)]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-3, atol=1e-3)
        save_tensors(model.state_dict(), tmp_path / "model.safetensors")
        again = model_of(layers).eval()
        again.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(again(tokens), whole)


def test_the_shelf_s_space_searches_over_all_of_it():
    space = load_space(ROOT / "search_spaces" / "shelf.yaml")
    for layer in space.run["model"]["layers"]:
        for kind in NAMES:
            if isinstance(layer[kind], dict) and "choice" in layer[kind]:
                found = {choice if isinstance(choice, str) else choice["type"] for choice in layer[kind]["choice"]}
                assert found == {*NAMES[kind], "none"} or found == set(NAMES[kind])

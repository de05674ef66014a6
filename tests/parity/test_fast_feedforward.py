"""`fast_feedforward` computes what the two recursions of its paper compute, gradients included, in float64.

They go down the tree node by node for one token at a time: the soft one mixes what both children give, the hard one
follows the likelier child. The straight-through gradient of the hard one is its leaf's, times p over p held.
"""

import pytest
import torch
from torch.nn import functional as F

from blocks.state.fast_feedforward import FastFeedforward
from doge_lab.testing import check_block

BLOCK = "state/fast_feedforward"
ORACLE = "the soft and the hard recursion of the paper, written out in float64"


def leaf_output(tree, leaf, x):
    act = {"gelu": F.gelu, "relu2": lambda hidden: hidden.clamp(min=0) ** 2}[tree.config.activation]
    return act(tree.up[leaf] @ x) @ tree.down[leaf]


def soft(tree, x, level=0, index=0):
    """The `index`-th node of its level."""
    if level == tree.config.depth:
        return leaf_output(tree, index, x)
    right = torch.sigmoid(tree.nodes[2**level - 1 + index] @ x)
    return (1 - right) * soft(tree, x, level + 1, 2 * index) + right * soft(tree, x, level + 1, 2 * index + 1)


def hard(tree, x, level=0, index=0, probability=1.0):
    if level == tree.config.depth:
        return leaf_output(tree, index, x) * probability / probability.detach()
    right = torch.sigmoid(tree.nodes[2**level - 1 + index] @ x)
    if right >= 0.5:
        return hard(tree, x, level + 1, 2 * index + 1, probability * right)
    return hard(tree, x, level + 1, 2 * index, probability * (1 - right))


def tree_of(d_model=6, seed=0, **options):
    torch.manual_seed(seed)
    tree = FastFeedforward(d_model, **options).double()
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.normal_(std=0.7)
    return tree, torch.randn(2, 9, d_model, dtype=torch.float64, requires_grad=True)


@pytest.mark.usefixtures("experts_computed")
@pytest.mark.parametrize("form", [soft, hard])
@pytest.mark.parametrize(
    ("options", "seed"),
    [({"depth": 1, "d_leaf": 5}, 0), ({"depth": 3, "d_leaf": 2}, 1), ({"depth": 4, "activation": "relu2"}, 2)],
)
def test_outputs_and_gradients_are_those_of_the_paper(form, options, seed):
    tree, x = tree_of(seed=seed, routing=form.__name__, **options)
    y = tree(x)
    z = torch.stack([form(tree, token) for token in x.flatten(0, 1)]).view_as(x)
    close(y, z)
    leaves = [x, *tree.parameters()]
    for mine, brute in zip(grads(y, leaves), grads(z, leaves), strict=True):
        close(mine, brute)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_decoding_walks_to_the_same_leaf_as_a_batch(depth):
    tree, x = tree_of(depth=depth)
    with torch.no_grad():
        alone = torch.cat([tree(token[None, None]) for token in x.flatten(0, 1)], dim=1)
        close(alone.view_as(x), tree(x))


def test_a_soft_tree_of_certain_nodes_is_the_hard_one():
    tree, x = tree_of(routing="soft")
    other = FastFeedforward(6, routing="hard").double()
    with torch.no_grad():
        tree.nodes *= 1e6
        other.load_state_dict(tree.state_dict())
        close(tree(x), other(x))


def test_the_published_form_is_soft_in_training_and_hard_in_evaluation():
    tree, x = tree_of(routing="soft_then_hard")
    expected = {True: soft, False: hard}
    for training, form in expected.items():
        close(tree.train(training)(x)[0, 0], form(tree, x[0, 0]))
        assert (tree.routing(x) is None) == training
    assert tree.active_params() == 3 * 6 + 2 * 3 * 6


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_losses_follow_their_formulas(routing):
    tree, x = tree_of(depth=2, routing=routing, hardening_loss_weight=0.5, balance_loss_weight=0.25)
    tree(x)
    rights = torch.sigmoid(x.flatten(0, 1) @ tree.nodes.t())
    entropy = -(rights * rights.log() + (1 - rights) * (1 - rights).log()).mean()
    root, left, right = rights.t()
    probability = torch.stack([(1 - root) * (1 - left), (1 - root) * left, root * (1 - right), root * right]).mean(1)
    usage = probability.detach()
    if routing == "hard":
        reached = [2 * int(a >= 0.5) + int((c if a >= 0.5 else b) >= 0.5) for a, b, c in rights.tolist()]
        usage = torch.tensor([reached.count(leaf) / len(reached) for leaf in range(4)])
    balance = 4 * (usage * probability).sum()
    stats = tree.router_stats
    close(stats.usage, usage.float(), 1e-6)
    close(stats.balance_loss, balance.detach().float(), 1e-6)
    loss = 0.25 * balance + 0.5 * entropy
    close(stats.loss.double(), loss, 1e-6)
    close(torch.autograd.grad(stats.loss, tree.nodes)[0], torch.autograd.grad(loss, tree.nodes)[0], 1e-6)


def test_it_keeps_the_contract_far_from_its_defaults():
    check_block(FastFeedforward, routing="soft", depth=2, d_leaf=5, hardening_loss_weight=0.1)
    check_block(FastFeedforward, routing="soft_then_hard", depth=4, activation="relu2", hardening_loss_weight=0.1)


def grads(y, leaves):
    target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad(((y - target) ** 2).sum(), leaves)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

"""Blocks whose router is dead, lies, collapses or piles up its losses."""

import dataclasses

import torch
from broken.healthy import Experts, OpenExperts
from torch import nn


class DeadRouter(Experts):
    """Starts from zero keys and uses the indices alone: no gradient, and every token gets the same experts."""

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.router.weight)

    def choose(self, scores):
        weight, index = super().choose(scores)
        return torch.full_like(weight, 0.5), index


class Collapsed(Experts):
    """Has two favourites that beat all others for every token."""

    def choose(self, scores):
        favourite = torch.arange(scores.shape[-1]) < 2
        return super().choose(scores / 10 + 9 * favourite.to(scores.dtype))


class MasksWithZero(Experts):
    """Sets the scores that were not chosen to 0 before a softmax, which still gives them weight."""

    def forward(self, x):
        scores = self.router(x)
        _, index = super().choose(scores)
        chosen = torch.zeros_like(scores).scatter(-1, index, 1.0)
        weight = (scores * chosen).softmax(dim=-1)
        hidden = torch.einsum("btd,ed->bte", x, self.down).relu()
        return torch.einsum("bte,ed->btd", hidden * weight, self.up)

    def flops_per_token(self, context):
        return 2 * self.d_model * 3 * self.config.n_experts


class ReportsScores(Experts):
    """Reports counts instead of shares."""

    def report(self, scores, index):
        super().report(scores, index)
        self.router_stats = dataclasses.replace(self.router_stats, usage=self.router_stats.usage * index.numel())


class ReportsOtherExperts(Experts):
    """Reports the neighbour of each expert that it chose."""

    def report(self, scores, index):
        super().report(scores, (index + 1) % scores.shape[-1])


class SecondBest(OpenExperts):
    """Leaves the best expert out of its choice."""

    def choose(self, scores):
        weight, index = scores.softmax(dim=-1).sort(dim=-1, descending=True)
        skip = int(scores.shape[-1] > self.top_k)
        chosen = slice(skip, skip + self.top_k)
        self.report(scores, index[..., chosen])
        return weight[..., chosen], index[..., chosen]


class WeighsOtherwise(OpenExperts):
    """Says softmax over all experts, and normalises over the chosen."""

    def choose(self, scores):
        weight, index = super().choose(scores)
        return weight / weight.sum(-1, keepdim=True), index


class OutOfReach(Experts):
    """Numbers its experts so that the last ones are never read."""

    def choose(self, scores):
        weight, index = super().choose(scores)
        return weight, index % 2

    def report(self, scores, index):
        super().report(scores, index)
        self.router_stats = None


class LossPilesUp(Experts):
    """Adds each batch's loss to the one before."""

    def report(self, scores, index):
        before = 0.0 if self.router_stats is None else self.router_stats.loss.detach()
        super().report(scores, index)
        self.router_stats = dataclasses.replace(self.router_stats, loss=self.router_stats.loss + before)


class GraphPilesUp(Experts):
    """Keeps the graph of every batch in its loss."""

    def report(self, scores, index):
        before = 0.0 if self.router_stats is None else self.router_stats.loss
        super().report(scores, index)
        self.router_stats = dataclasses.replace(self.router_stats, loss=self.router_stats.loss + before)


class KeepsALog(Experts):
    """Appends every loss to a list, in training."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.log = []

    def report(self, scores, index):
        super().report(scores, index)
        if self.training:
            self.log.append(self.router_stats.loss.detach())


class KeepsTheSum(Experts):
    """Reports honestly, and keeps the sum of all losses as well, in training."""

    total = 0.0

    def report(self, scores, index):
        super().report(scores, index)
        if self.training:
            self.total = self.total + self.router_stats.loss.detach()
            self.router_stats = dataclasses.replace(self.router_stats, z_loss=self.total)

"""How routed blocks turn a router's scores into weights, and how evenly its choices fall.

    softmax_chosen   exp(c) / Σ over the chosen exp(c)
    softmax_all      exp(c) / Σ over all exp(c)
    sigmoid          1 / (1 + exp(-c))

    balance loss     E Σ_e f_e P_e     f: share of the picks, P: mean probability; 1 when balanced, E when collapsed

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538 ; the balance loss in the form of Fedus et al. 2021,
https://arxiv.org/abs/2101.03961

Shape letters: E expert.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from doge_lab.errors import UserError

Normalisation = Literal["softmax_chosen", "softmax_all", "sigmoid"]


def check_normalisation(normalisation: Normalisation, name: str, choices: int) -> None:
    """Refuse a softmax over the chosen where only one is: it is 1 whatever the scores, so no router learns."""
    if normalisation == "softmax_chosen" and choices == 1:
        raise UserError(
            f"softmax_chosen with {name}=1 is a softmax over one choice: always 1, so the router learns nothing; "
            f"say normalisation: softmax_all or sigmoid, or {name}=2",
            "normalisation",
        )


def route_weights(
    scores: Tensor, normalisation: Normalisation, log_total: Callable[[], Tensor], dim: int = -1
) -> Tensor:
    """Weights of the chosen experts from their `scores` along `dim`.

    log_total: gives the logarithm of Σ exp(c) over all experts, of size 1 along `dim`; called for `softmax_all` alone.
    """
    if normalisation == "softmax_chosen":
        return scores.softmax(dim)
    if normalisation == "sigmoid":
        return scores.sigmoid()
    return (scores - log_total()).exp()


def balance_loss(usage: Tensor, probability: Tensor) -> Tensor:
    """E Σ_e usage_e probability_e of two distributions [E]; the gradient flows through `probability` alone."""
    return len(usage) * usage.detach() @ probability

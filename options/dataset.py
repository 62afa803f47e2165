"""The options of the sub-commands of dataset.py. The docstring of each class is the manual that its --help shows."""

from dataclasses import dataclass
from typing import ClassVar

from options.commands import CommandOptions
from options.fields import DEVICES, option
from options.value_range import read_value_ranges


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(CommandOptions):
    """Base class of the options of dataset.py's sub-commands."""

    SCRIPT: ClassVar[str] = "dataset.py"


@dataclass(frozen=True, kw_only=True)
class DownloadOptions(DatasetOptions):
    """Fetch a published data set into data/NAME.

        python dataset.py download --list
        python dataset.py download apple2orange
        python dataset.py download apple2orange --from ~/Downloads/apple2orange.zip

    `--data NAME` then trains on it. The folder is made whole or not at all. The SHA-256 of the zip file must
    equal the published one. If none is published, it must equal the SHA-256 of the first download, which is kept in
    data/NAME.zip.sha256.
    """

    # fmt: off
    name: str | None = option(None, "name of the data set", positional=True, metavar="NAME")
    list: bool = option(False, "show all names, with sizes, licenses and origins")
    from_file: str | None = option(
        None, "zip file of the data set, if you have it already", flag="--from", is_path=True, metavar="FILE")
    out: str | None = option(
        None, "folder to make; default: data/NAME", aliases=("-o",), is_path=True, metavar="FOLDER")
    # fmt: on

    def check(self) -> None:
        super().check()
        others = {"NAME": self.name, "--from": self.from_file, "--out": self.out}
        for flag, value in others.items():
            if self.list and value is not None:
                raise ValueError(f"{flag}: does nothing with --list; leave one out")
        if not self.list and not self.name:
            raise ValueError("NAME: missing; give the name of a data set, or --list")


@dataclass(frozen=True, kw_only=True)
class FacesOptions(DatasetOptions):
    """Cut the faces of a person out of photo albums.

        python dataset.py faces photos/album --person photo1.jpg photo2.jpg -o data/me
        python dataset.py faces photos/album -o data/everybody

    Everything happens on this computer: no photo and no face is uploaded anywhere. Each face is rotated upright, scaled
    by its eyes, and written as a square PNG. With --person only faces of that person are kept; without it all faces,
    in a folder for each person: person-01, person-02 and so on. Of near copies the largest is kept. Subfolders of the
    album are searched, too, but not those that this command made; photos are never changed.

    The folder report/ in the output holds contact sheets: what was kept, and what was refused with the reason. The same
    command continues where it stopped, and adds photos that are new or have changed. A face that you delete from the
    output stays deleted. Needs pip install -r requirements-faces.txt
    """

    # fmt: off
    album: str = option(
        "", "folder of photos", positional=True, required=True, is_path=True, metavar="ALBUM")
    person: list[str] | None = option(
        None, "photos that show only the person: one is enough, three or four are better", several=True, is_path=True,
        metavar="PHOTO")
    out: str = option("", "folder of the faces", required=True, aliases=("-o",), is_path=True, metavar="FOLDER")
    size: int = option(128, "height and width of the faces in pixels", at_least=32, at_most=1024, metavar="S")
    background: str = option(
        "keep", "white: only the person on white; blur: the person before a blurred background; keep: no change; white "
        "and blur download a model of 0.2 MB once", choices=("white", "blur", "keep"))
    padding: float = option(
        0.75, "space around eyes, nose and mouth; 0.25: the face alone, 0.75: the whole head, 1.5: shoulders, too",
        at_least=0, at_most=4, metavar="P")
    min_size: int | None = option(
        None, "skip a face if its square has fewer pixels a side in the photo; default: --size, so that no face is "
        "enlarged", at_least=16, metavar="N")
    threshold: float = option(
        0.5, "largest difference between two faces of the same person; smaller is stricter", above=0, at_most=1,
        metavar="D")
    near_copy: float = option(
        0.15, "faces with a smaller difference are near copies; 0: keep all", at_least=0, at_most=1, metavar="D")
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class DiffuseOptions(DatasetOptions):
    """Make images with a pretrained diffusion model.

        python dataset.py diffuse "a grumpy cat" -n 64 --model stable-diffusion-v1-5/stable-diffusion-v1-5 -o data/more
        python dataset.py diffuse -n 64 --model google/ddpm-cat-256 --steps 100 -o data/cats-256

    The model is a folder that diffusers' save_pretrained wrote, or a name on the Hugging Face Hub: a pipeline that
    makes images of a text, or without a text. Only weights in safetensors are read, and code of a model is never run.
    With HF_HUB_OFFLINE=1 only models in the hub's cache are used.

    Image K depends on the seed plus K only, whatever -n and --batch_size are. The same command continues where it
    stopped, and a larger -n adds images; an image that you delete stays deleted. diffusion.json beside the images
    records prompt, model, version and options. Use a GPU: on a CPU one image takes minutes to hours.
    Needs pip install -r requirements-diffusion.txt
    """

    # fmt: off
    prompt: str | None = option(
        None, "text of the images, for a model that reads one", positional=True, metavar="PROMPT")
    n: int = option(None, "number of images", flag="-n", required=True, at_least=1, at_most=1_000_000, metavar="N")
    out: str = option("", "folder of the images", required=True, aliases=("-o",), is_path=True, metavar="FOLDER")
    model: str = option(
        "", "folder of the model, or its name on the Hugging Face Hub", required=True, is_path=True,
        metavar="FOLDER_OR_HUB_NAME")
    seed: int = option(0, "seed of image 0; image K has the seed plus K", at_least=0, at_most=2**63 - 1)
    steps: int | None = option(
        None, "denoising steps: fewer are faster; default: as the model says", at_least=1, at_most=10_000, metavar="N")
    guidance: float | None = option(
        None, "how closely images follow the prompt; default: as the model says", at_least=0, at_most=100, metavar="G")
    negative_prompt: str | None = option(None, "text of what images should not show", metavar="TEXT")
    size: int | None = option(
        None, "height and width in pixels; default: those of the model, which are best", at_least=8, at_most=4096,
        metavar="S")
    batch_size: int = option(4, "images at a time; changes images only by rounding", at_least=1)
    device: str = option("auto", "auto: CUDA, else MPS, else CPU", choices=DEVICES)
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DatasetOptions):
    """Look at a folder of images before training.

        python dataset.py check photos/cats
        python dataset.py check photos/apples photos/oranges
        python dataset.py check apple2orange -o apple2orange.png
        python dataset.py check photos/cats --fix data/clean-cats

    Prints sizes, unreadable files, copies, unusual images and advice for training, and draws one picture: what training
    sees of a dozen images under each --data_aug, and what the discriminator sees under --use_diffaug. Two folders are
    compared as the domains X and Y of a CycleGAN; so are trainA and trainB in one folder. FOLDER is never changed.

    Near copies are the same picture in another size, quality or brightness, or mirrored.
    """

    # fmt: off
    folder: str = option(
        "", "folder of images, or of trainA and trainB, or a name below data/", positional=True, required=True,
        metavar="FOLDER", is_path=True)
    other: str | None = option(
        None, "folder of the images of domain Y; FOLDER then has those of domain X", positional=True, metavar="OTHER",
        is_path=True)
    out: str = option(
        "preview.png", "the picture, a PNG file", aliases=("-o",), is_path=True, metavar="FILE")
    overwrite: bool = option(False, "replace a picture of the same name that this command did not draw")
    image_size: int = option(
        64, "side of the square images that training would see, in pixels", at_least=32, at_most=1024, metavar="S")
    value_range: str | None = option(
        None, "values that become black and white, of images with more than 8 bits per value, as for training",
        metavar="LOW,HIGH")
    near_copy: float = option(
        0.12, "images with a smaller difference are near copies; 0: only exact copies", at_least=0, at_most=1,
        metavar="D")
    fix: str | None = option(
        None, "new folder for a copy of the images without unreadable files and copies, rotated by their EXIF tag",
        is_path=True, metavar="OUT")
    # fmt: on

    def check(self) -> None:
        super().check()
        read_value_ranges(self.value_range, 2)

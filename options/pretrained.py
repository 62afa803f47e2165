"""Generators that the CycleGAN authors trained, by name: generate.py takes `pretrained:NAME` instead of a run."""

from options.fields import expand_home

PREFIX = "pretrained:"
CREDIT = (
    "trained by Zhu et al. (ICCV 2017), https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix, BSD license"
)  # fmt: skip

# Name -> what the generator makes of what.
PRETRAINED = {
    "apple2orange": "apples to oranges",
    "orange2apple": "oranges to apples",
    "summer2winter_yosemite": "photos of Yosemite in summer to winter",
    "winter2summer_yosemite": "photos of Yosemite in winter to summer",
    "horse2zebra": "horses to zebras",
    "zebra2horse": "zebras to horses",
    "monet2photo": "paintings by Monet to photos",
    "style_monet": "photos to the style of Monet",
    "style_cezanne": "photos to the style of Cezanne",
    "style_ukiyoe": "photos to the style of Ukiyo-e",
    "style_vangogh": "photos to the style of Van Gogh",
    "sat2map": "aerial photos to maps",
    "map2sat": "maps to aerial photos",
    "cityscapes_photo2label": "photos of streets to labels",
    "cityscapes_label2photo": "labels to photos of streets",
    "facades_photo2label": "photos of facades to labels",
    "facades_label2photo": "labels to photos of facades",
    "iphone2dslr_flower": "photos of flowers to a shallow depth of field",
}


def read_run(text: str) -> str:
    """Return the argument RUN with its `~` replaced; `pretrained:list` prints the names and ends the program."""
    if text == f"{PREFIX}list":
        width = max(map(len, PRETRAINED)) + len(PREFIX)
        print("\n".join(f"{PREFIX + name:{width}}  {what}" for name, what in PRETRAINED.items()))
        print(f"All {CREDIT}.")
        raise SystemExit(0)
    return expand_home(text)

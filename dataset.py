"""Make folders of images to train on.

    python dataset.py download apple2orange                  # a published data set, by name
    python dataset.py faces photos/album --person me.jpg -o data/me
    python dataset.py diffuse "a grumpy cat" -n 64 --model MODEL -o data/more-cats
    python dataset.py check photos/cats                      # look at images before training

See `python dataset.py COMMAND --help` for all options.
"""

import sys

from options.command_line import parse_subcommand
from options.dataset import CheckOptions, DatasetOptions, DiffuseOptions, DownloadOptions, FacesOptions
from sources.catalogue import list_data_sets

OPTIONS_OF: dict[str, type[DatasetOptions]] = {
    "download": DownloadOptions,
    "faces": FacesOptions,
    "diffuse": DiffuseOptions,
    "check": CheckOptions,
}

if __name__ == "__main__":
    OPTIONS = parse_subcommand(OPTIONS_OF, __doc__)  # before torch is imported, so that --help answers at once

from system.program import run_main


def main(options: DatasetOptions) -> int:
    """Run the sub-command whose options these are; return the exit code. Each imports only what it needs itself."""
    if isinstance(options, DownloadOptions):
        if options.list:
            print(list_data_sets())
            return 0
        from sources.downloads import download

        return download(options)
    if isinstance(options, FacesOptions):
        from sources.faces import faces

        return faces(options)
    if isinstance(options, DiffuseOptions):
        from sources.diffusion import diffuse

        return diffuse(options)
    from sources.check import check

    assert isinstance(options, CheckOptions)
    return check(options)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))

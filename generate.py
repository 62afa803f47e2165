"""Use a trained generator: sample, interpolate, translate, export, make a demo.

    python generate.py sample checkpoints/my-cats -n 64 --grid cats.png
    python generate.py interpolate checkpoints/my-cats --seeds 3,7,11 --frames 60 --loop -o walk.gif
    python generate.py translate checkpoints/my-fruit photos/apples --direction X2Y -o oranges
    python generate.py export checkpoints/my-cats --format onnx -o cats.onnx
    python generate.py demo checkpoints/my-cats -o cats.html

The network is rebuilt from the options in the checkpoint, with the moving average of its weights if the run kept one.
The images that it was trained on are not needed. See `python generate.py COMMAND --help` for all options.
"""

import sys
from collections.abc import Callable
from typing import Any

from options.command_line import parse_subcommand
from options.commands import (
    DemoOptions,
    ExportOptions,
    GenerateOptions,
    InterpolateOptions,
    SampleOptions,
    TranslateOptions,
)

OPTIONS_OF: dict[str, type[GenerateOptions]] = {
    "sample": SampleOptions,
    "interpolate": InterpolateOptions,
    "translate": TranslateOptions,
    "export": ExportOptions,
    "demo": DemoOptions,
}

if __name__ == "__main__":
    OPTIONS = parse_subcommand(OPTIONS_OF, __doc__)  # before torch is imported, so that --help answers at once

from generation.demo import demo
from generation.export import export
from generation.sampling import interpolate, sample
from generation.trained import load_generator
from generation.translation import translate
from system.device import tune_malloc
from system.program import run_main
from utils import UserError

__all__ = ["load_generator", "main"]

COMMANDS: dict[type, Callable[[Any], int]] = {
    SampleOptions: sample,
    InterpolateOptions: interpolate,
    TranslateOptions: translate,
    ExportOptions: export,
    DemoOptions: demo,
}


def main(options: GenerateOptions) -> int:
    """Run the sub-command whose options these are; return the exit code."""
    tune_malloc()
    try:
        return COMMANDS[type(options)](options)
    except OSError as error:  # a full disk or a missing permission
        where = error.filename or options.out
        raise UserError(f"{where}: {error.strerror or error}; fix this, or write elsewhere") from None


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))

"""Every option of the commands, declared once. Nothing here imports torch, so that `--help` answers at once."""

from options.command_line import parse_command_line
from options.fields import DEVICES
from options.training import CycleOptions, VanillaOptions

__all__ = ["DEVICES", "CycleOptions", "VanillaOptions", "parse_command_line"]

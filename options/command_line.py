"""The command line of an options class, built from its fields."""

import argparse
import difflib
import inspect
import re
import signal
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from options.commands import CommandOptions
from options.common import CommonOptions, Options
from options.fields import expand_home, flag_of, option_fields

Command = TypeVar("Command", bound=CommandOptions)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # argparse takes an argument for a flag if it begins with "-", unless it is a number: so is "-1024,3071".
        self._negative_number_matcher = re.compile(r"-[\d.][\d.,:eE+-]*")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as usual, and refuse "--" as the value of a flag: older versions of Python return an empty list."""
        known, unknown = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(known, action.dest, None)
            if isinstance(value, list) and (value == [] or [] in value):
                self.error(f"{(action.option_strings or [action.dest])[0]}: '--' is not a value; give another one")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        similar = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
        hint = "".join(f", did you mean {flag}?" for flag in similar)
        message = " ".join(message.split())  # an argument may contain line breaks
        self.exit(2, f"{self.prog}: error: {message}{hint} (--help lists the options)\n")


def add_options(parser: argparse.ArgumentParser, cls: type, common: type | None = None) -> None:
    """Add every option of a class to a parser, in its group, with its choices and default.

    Args:
        common: a base class whose options come last in each group.
    """
    hints = get_type_hints(cls)
    fields = option_fields(cls)
    names = dict.fromkeys(field.metadata["group"] for field in fields)
    groups = {name: parser.add_argument_group(name) if name else parser for name in names}
    last = {field.name for field in option_fields(common)} if common is not None else set()
    for field in sorted(fields, key=lambda field: field.name in last):
        meta = field.metadata
        kind = hints[field.name]
        if get_origin(kind) in (Union, types.UnionType):  # `int | None` is read as int
            kind = next(part for part in get_args(kind) if part is not type(None))
        default = "" if field.default in (None, "") else f" (default: {field.default})"
        arguments: dict[str, Any] = dict(help=meta["help"].replace("%", "%%") + default)
        # `check` refuses what is not among the choices: argparse's own words differ between versions of Python.
        braces = meta["choices"] and "{" + ",".join(map(str, meta["choices"])) + "}"
        if kind is bool:
            is_training = issubclass(cls, CommonOptions)  # only there a preset may have turned the option on
            arguments["action"] = argparse.BooleanOptionalAction if is_training else "store_true"
        else:
            read = meta["read"] or (expand_home if meta["is_path"] else kind)
            arguments.update(type=read, metavar=braces or meta["metavar"])
        if meta["const"] is not None:
            arguments.update(nargs="?", const=meta["const"])
        if meta["repeats"]:
            arguments["action"] = "append"
        if meta["several"]:
            arguments.update(action="extend", nargs="+")
        group = groups[meta["group"]]
        if meta["positional"]:
            group.add_argument(field.name, **{"nargs": None if meta["required"] else "?", **arguments})
            continue
        group.add_argument(flag_of(field), *meta["aliases"], dest=field.name, required=meta["required"], **arguments)
        if kind is not bool and meta["const"]:  # a preset may have turned it on
            off = f"--no-{field.name}"
            group.add_argument(off, dest=field.name, action="store_const", const="", help=f"turn --{field.name} off")


def make_parser(cls: type[CommandOptions] | type[CommonOptions], manual: str) -> OneLineParser:
    """Return the parser of an options class; `manual` is the text above the options in --help."""
    parser = OneLineParser(prog=cls.SCRIPT, usage="%(prog)s [options]", **_parser_settings(manual))
    add_options(parser, cls, CommonOptions if issubclass(cls, CommonOptions) else None)
    return parser


def _parser_settings(manual: str) -> dict[str, Any]:
    """Return the settings that all parsers share.

    The manual keeps its lines, flags cannot be shortened, and an option that the user leaves out is not in the result.
    """
    return dict(
        description=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )


def _end_quietly(arguments: Sequence[str] | None) -> None:
    """Let Ctrl-C end this process without a traceback while torch is imported, until `run_main` sets its handler.

    Nothing changes if a caller gave the arguments, in an interactive session, such as a notebook, because Ctrl-C must
    not end the session, and in a thread, because Python allows handlers in the main thread only.
    """
    is_session = hasattr(sys, "ps1") or sys.flags.interactive
    if arguments is None and not is_session and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def parse_command_line(cls: type[Options], manual: str, arguments: Sequence[str] | None = None) -> Options:
    """Read a command line into checked options.

    Args:
        manual: the text above the options in --help.
        arguments: the arguments of the command line; None: those of this process.

    Raises:
        SystemExit: code 0 after --help and `--preset list`; code 2 after one line on stderr for a mistake.
    """
    parser = make_parser(cls, manual)
    explicit = vars(parser.parse_args(arguments))
    preset = explicit.get("preset")
    has_data = bool(explicit.keys() & set(cls.DATA_FLAGS))
    if preset is None and not has_data:
        preset = "toy_cats"
    if preset == "list":
        width = max(map(len, cls.PRESETS))
        print("\n".join(f"{name:{width}}  {text}" for name, (text, _) in cls.PRESETS.items()))
        parser.exit()
    if preset is not None and preset not in cls.PRESETS:
        parser.error(f"--preset: {preset!r} is unknown; choose from {', '.join(cls.PRESETS)}")
    values = {**(cls.PRESETS[preset][1] if preset else {}), **explicit}
    # The user's images replace those of the preset, whichever flags name them.
    if has_data:
        values = {name: value for name, value in values.items() if name in explicit or name not in cls.DATA_FLAGS}
    # A length in epochs on the command line overrides a length in iterations of the preset.
    if "num_epochs" in explicit and "train_iters" not in explicit:
        values.pop("train_iters", None)
    # Codes stand for fixed images. The user has not asked for those of the toy cats, and gets the augmentation.
    if "preset" not in explicit and explicit.get("data_aug", "basic") != "basic" and "lambda_codes" not in explicit:
        values.pop("lambda_codes", None)
    try:
        options = cls(**{**values, "preset": preset}, explicit=frozenset(explicit))
        options.check()
        if options.resume is None:
            options.check_combinations()
    except ValueError as error:
        parser.error(str(error))
    _end_quietly(arguments)
    return options


def _finish(parser: OneLineParser, cls: type[Command], values: dict[str, Any]) -> Command:
    """Return the checked options of a command; a mistake ends the program with one line and exit code 2."""
    try:
        options = cls(**values)
        options.check()
    except ValueError as error:
        parser.error(str(error))
    return options


def parse_command(cls: type[Command], manual: str, arguments: Sequence[str] | None = None) -> Command:
    """Read the command line of a program other than the training scripts into checked options.

    Args, Raises: as `parse_command_line`.
    """
    parser = make_parser(cls, manual)
    parser.usage = None
    options = _finish(parser, cls, vars(parser.parse_args(arguments)))
    _end_quietly(arguments)
    return options


def parse_subcommand(classes: dict[str, type[Command]], manual: str, arguments: Sequence[str] | None = None) -> Command:
    """Read a command line that begins with a sub-command into the checked options of that sub-command.

    Args:
        classes: sub-command -> its options, whose docstring is its manual.
        manual, arguments: as `parse_command_line`.
    """
    script = next(iter(classes.values())).SCRIPT
    parser = OneLineParser(prog=script, **_parser_settings(manual))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, cls in classes.items():
        help_text = inspect.cleandoc(cls.__doc__ or "")
        headline = help_text.partition(".\n")[0]
        added = commands.add_parser(name, help=headline[0].lower() + headline[1:], **_parser_settings(help_text))
        add_options(added, cls)
    known, unknown = parser.parse_known_args(arguments)
    values = vars(known)
    name = values.pop("command")
    if unknown:  # reported with the flags of the sub-command
        commands.choices[name].error(f"unrecognized arguments: {' '.join(unknown)}")
    options = _finish(commands.choices[name], classes[name], values)
    _end_quietly(arguments)
    return options

"""The command lines of evaluate.py and generate.py: values, defaults, and mistakes that end with one line."""

import argparse

import pytest

import evaluate
import generate
from options.command_line import parse_command, parse_subcommand
from options.commands import MAX_SEEDS, EvaluateOptions, InterpolateOptions, SampleOptions, read_seeds
from options.fields import flag_of, option_fields

SUBCOMMANDS = generate.OPTIONS_OF


def parse_evaluate(*arguments: str) -> EvaluateOptions:
    return parse_command(EvaluateOptions, "The manual.", arguments)


def parse_generate(*arguments: str):
    return parse_subcommand(SUBCOMMANDS, "The manual.", arguments)


def refused(capsys, prog: str, *arguments: str) -> str:
    """Parse a command line that must be refused; return the line that says why."""
    with pytest.raises(SystemExit) as stop:
        parse_evaluate(*arguments) if prog == "evaluate.py" else parse_generate(*arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith(f"{prog}: error: "), err
    return err.removeprefix(f"{prog}: error: ")


# ----------------------------------------------------------------------------------------------------------------------
# evaluate.py


def test_evaluate_has_defaults():
    options = parse_evaluate("checkpoints/x")
    assert options == EvaluateOptions(run="checkpoints/x")
    assert (options.reference, options.checkpoint, options.features, options.out) == (None, "newest", "inception", None)


def test_evaluate_takes_positionals_flags_and_aliases():
    options = parse_evaluate("-o", "here", "--batch_size=3", "made", "real", "--seed", "7", "--checkpoint", "best")
    assert (options.run, options.reference, options.out) == ("made", "real", "here")
    assert (options.batch_size, options.seed, options.checkpoint) == (3, 7, "best")
    assert parse_evaluate("x", "--out=here").out == "here"


EVALUATE_MISTAKES = [
    ([], ["required", "RUN_OR_FOLDER"]),
    (["a", "b", "c"], ["unrecognized arguments: c", "--help"]),
    (["a", "--num_images=1"], ["--num_images: 1 is out of range; use a number at least 2"]),
    (["a", "--image_size=31"], ["--image_size: 31 is out of range; use a number at least 32"]),
    (["a", "--batch_size=0"], ["--batch_size: 0 is out of range; use a number at least 1"]),
    (["a", "--seed=-1"], ["--seed: -1 is out of range; use a number at least 0"]),
    (["a", f"--seed={2**63}"], [f"--seed: {2**63} is out of range", f"at most {2**63 - 1}"]),
    (["a", "--device=tpu"], ["--device: 'tpu' is unknown; choose from auto, cuda, mps, cpu"]),
    (["a", "--batch_size=many"], ["--batch_size", "'many'"]),
    (["a", "--inception_weights=w", "--features=pixels"], ["--inception_weights", "--features pixels", "leave one"]),
    (["a", "--feature=pixels"], ["--feature=pixels, did you mean --features?"]),
    (["a", "--seed"], ["--seed", "expected one argument"]),
    (["a", "b", "c\nd"], ["unrecognized arguments: c d"]),
]  # fmt: skip


@pytest.mark.parametrize("arguments, words", EVALUATE_MISTAKES)
def test_mistakes_of_evaluate(capsys, arguments, words):
    message = refused(capsys, "evaluate.py", *arguments)
    assert all(word in message for word in words), message


# ----------------------------------------------------------------------------------------------------------------------
# generate.py


def test_each_subcommand_has_its_own_options():
    required = {
        "sample": ["run", "-n=1", "--grid=a.png"],
        "interpolate": ["run", "--seeds=1,2", "-o=a.gif"],
        "translate": ["run", "in", "-o=out"],
        "export": ["run", "--format=onnx", "-o=a.onnx"],
        "demo": ["run", "-o=a.html"],
    }
    assert required.keys() == SUBCOMMANDS.keys()
    for name, arguments in required.items():
        assert type(parse_generate(name, *arguments)) is SUBCOMMANDS[name]


def test_sample_takes_a_number_or_a_list():
    assert parse_generate("sample", "run", "-n", "3", "--grid=g.png").chosen_seeds() == [0, 1, 2]
    assert parse_generate("sample", "run", "-n3", "-o", "f").chosen_seeds() == [0, 1, 2]
    options = parse_generate("sample", "run", "--seeds", "5,2-3", "--out=f")
    assert options.chosen_seeds() == [5, 2, 3] and options.n is None and options.out == "f"
    assert parse_generate("sample", "run", "-n=2", "--seeds=8,9", "--out=f").chosen_seeds() == [8, 9]


def test_interpolate_takes_several_walks():
    options = parse_generate("interpolate", "run", "--seeds=1,2", "--seeds", "4-6", "-o", "walk.gif")
    assert options.seeds == [[1, 2], [4, 5, 6]]
    assert options == InterpolateOptions(run="run", seeds=[[1, 2], [4, 5, 6]], out="walk.gif")
    assert (options.frames, options.fps, options.loop) == (60, 20.0, False)


def test_switches():
    """They are off by default, and no preset turns them on, so there is no flag to turn them off."""
    arguments = ["interpolate", "run", "--seeds=1,2", "-o=a.gif"]
    options = parse_generate(*arguments, "--loop", "--spherical", "--overwrite")
    assert options.loop and options.spherical and options.overwrite and not options.random_walk
    with pytest.raises(SystemExit):
        parse_generate(*arguments, "--no-loop")


GENERATE_MISTAKES = [
    ("", [], ["required: COMMAND"]),
    ("", ["smaple", "run"], ["'smaple'", "sample", "interpolate", "translate", "export"]),
    ("sample", ["-n=1", "--grid=a.png"], ["required: RUN"]),
    ("sample", ["run"], ["--seeds: missing", "-n", "--seeds"]),
    ("sample", ["run", "-n=1"], ["--out: missing", "--grid FILE", "--out FOLDER"]),
    ("sample", ["run", "-n=0", "-o=f"], ["-n: 0 is out of range; use a number at least 1"]),
    ("sample", ["run", "-n=1000001", "-o=f"], ["-n: 1000001 is out of range", "at most 1000000"]),
    ("sample", ["run", "-n=2", "--seeds=1-3", "-o=f"], ["-n: 2 images, but --seeds has 3", "leave one out"]),
    ("sample", ["run", "--seeds=1,2,1", "-o=f"], ["--seeds: a seed is given twice; give each once"]),
    ("sample", ["run", "--seeds=a", "-o=f"], ["--seeds: 'a' is not a list of seeds; use one such as 3,7,10-12"]),
    ("sample", ["run", "-n=1", "-o=f", "--truncation=0"], ["--truncation: 0.0", "above 0 and at most 2"]),
    ("sample", ["run", "-n=1", "-o=f", "--seedz=3"], ["--seedz=3, did you mean --seeds?"]),
    ("sample", ["run", "-n=1", "-o=f", "--loop"], ["unrecognized arguments: --loop (--help"]),
    ("interpolate", ["run", "-o=a.gif"], ["required: --seeds"]),
    ("interpolate", ["run", "-o=a.gif", "--seeds=1,2", "--seeds=--"], ["--seeds", "'--'"]),
    ("interpolate", ["run", "--seeds=1,2"], ["required: --out"]),
    ("interpolate", ["run", "--seeds=1,2", "--seeds=3", "-o=a.gif"], ["--seeds", "at least 2", "--random_walk"]),
    ("interpolate", ["run", "--seeds=1,2", "-o=a.gif", "--frames=1"], ["--frames: 1 is out of range", "at least 2"]),
    ("interpolate", ["run", "--seeds=1-3", "-o=a.gif", "--frames=2"], ["--frames: 2", "3 seeds", "at least as many"]),
    ("interpolate", ["run", "--seeds=1-3", "-o=a.GIF", "--fps=60"], ["--fps: 60", "GIF", "at most 50"]),
    ("interpolate", ["run", "--seeds=1-3", "-o=a.mp4", "--fps=nan"], ["--fps: nan is not a finite", "at most 120"]),
    ("interpolate", ["run", "--seeds=1-3", "-o=a.mp4", "--lopp"], ["--lopp, did you mean --loop?"]),
    ("translate", ["run", "-o=x"], ["required: INPUT"]),
    ("translate", ["run", "in", "-o=x", "--image_size=7"], ["--image_size: 7 is out of range", "at least 8"]),
    ("translate", ["run", "in", "-o=x", "--smooth=1"], ["--smooth: 1.0 is out of range", "below 1"]),
    ("export", ["run", "-o=x.onnx"], ["required: --format"]),
    ("export", ["run", "-o=x.onnx", "--format=onx"], ["--format: 'onx' is unknown; choose from onnx, torchscript"]),
    ("export", ["run", "-o=x.onnx", "--format=onnx", "--device=cpu"], ["unrecognized arguments: --device=cpu"]),
]  # fmt: skip


@pytest.mark.parametrize("command, arguments, words", GENERATE_MISTAKES)
def test_mistakes_of_generate(capsys, command, arguments, words):
    """A mistake is reported by the sub-command, which knows the flags that the user may have meant."""
    prog = f"generate.py {command}".strip()
    message = refused(capsys, prog, *([command] if command else []), *arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("arguments", [["--frames=2"], ["--seeds=1-9"], ["--seeds=1", "--frames=2"]])
def test_a_random_walk_needs_one_seed_only_and_no_frame_for_each(arguments):
    options = parse_generate("interpolate", "run", "--seeds=5", "--random_walk", "-o=a.mp4", *arguments)
    assert options.random_walk


# ----------------------------------------------------------------------------------------------------------------------
# Both


@pytest.mark.parametrize("command", ["", *SUBCOMMANDS])
def test_help_shows_the_manual_and_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_generate(command, "--help") if command else parse_evaluate("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    cls = SUBCOMMANDS[command] if command else EvaluateOptions
    manual = cls.__doc__ if command else "The manual."
    assert " ".join(manual.split()) in text
    for field in option_fields(cls):
        assert flag_of(field) in text and " ".join(field.metadata["help"].split()) in text, field.name


def test_help_of_generate_lists_the_subcommands(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_generate("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "The manual." in text
    for name, cls in SUBCOMMANDS.items():
        headline = " ".join(cls.__doc__.split(".\n")[0].split())
        assert f"{name} {headline[0].lower()}{headline[1:]}" in text


def test_the_commands_have_manuals():
    assert all(module.__doc__ for module in (evaluate, generate))
    assert all(cls.SCRIPT == "generate.py" for cls in SUBCOMMANDS.values()) and EvaluateOptions.SCRIPT == "evaluate.py"


def test_options_of_commands_can_be_made_without_a_command_line():
    """As tests and other programs do; `check` then finds the same mistakes."""
    SampleOptions(run="x", n=3, grid="a.png").check()
    with pytest.raises(ValueError, match="-n: 0 is out of range"):
        SampleOptions(run="x", n=0, grid="a.png").check()


# ----------------------------------------------------------------------------------------------------------------------
# Seeds


@pytest.mark.parametrize(
    "text, seeds",
    [("3", [3]), ("3,7,10-12", [3, 7, 10, 11, 12]), ("0-2, 5", [0, 1, 2, 5]), ("4-4", [4]), ("2,1", [2, 1])],
)
def test_read_seeds(text, seeds):
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3,", "a", "-1", "1-", "5-3", "1.5", "1-2-3", "0-999999999999", "9" * 30])
def test_read_seeds_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"use (one such as 3,7,10-12|at most 1000000)"):
        read_seeds(text)


def test_the_largest_number_of_seeds():
    assert len(read_seeds(f"1-{MAX_SEEDS}")) == MAX_SEEDS
    with pytest.raises(argparse.ArgumentTypeError, match="too many seeds"):
        read_seeds(f"0-{MAX_SEEDS}")

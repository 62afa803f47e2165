"""The command lines of the training scripts: precedence, checks, messages, and what a resumed run may change."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import diff_augment
import generate
import losses
import models
from images.augment import AUGMENTATIONS
from layers.blocks import INITS, NORMS
from layers.convolutions import UPSAMPLES
from metrics.diagnostics import give_hints
from options.command_line import make_parser, parse_command, parse_command_line, parse_subcommand
from options.commands import EvaluateOptions
from options.common import CommonOptions
from options.fields import DEVICES, DIFFAUGMENT_ALL, IMAGE_SIZES, option_fields
from options.training import CycleOptions, VanillaOptions
from runs.new_run import default_stem
from runs.trackers import TRACKERS
from tests.conftest import ROOT
from training.schedule import LR_POLICIES


def parse(*arguments: str) -> VanillaOptions:
    return parse_command_line(VanillaOptions, "The manual.", arguments)


def parse_cycle(*arguments: str) -> CycleOptions:
    return parse_command_line(CycleOptions, "The manual.", arguments)


def refused(capsys, *arguments: str) -> str:
    """Parse a command line that must be refused; return the line that says why."""
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("vanilla_gan.py: error: ")
    return err


def test_a_flag_overrides_the_preset_and_the_preset_the_default():
    assert parse("--data=x").disc == "dc" and parse("--data=x").num_epochs == 100
    assert parse("--preset=hasey").lr == 2e-4 and parse("--preset=hasey").upsample == "deconv"
    assert parse("--preset=hasey", "--lr=1e-3").lr == 1e-3
    assert parse("--data=x").lr == 5e-4 and parse().lr == 1e-3, "without images the preset is toy_cats"
    assert parse().preset == "toy_cats" and parse("--data=x").preset is None
    assert parse("--norm=none").norm == "none"
    assert parse("--lr", "5e-4", "--preset", "hasey").lr == 5e-4, "also when the explicit value is the default"


def test_a_length_in_epochs_overrides_the_iterations_of_the_preset():
    assert parse("--preset=agrawal").train_iters == 6400
    assert parse("--preset=agrawal", "--num_epochs=3").train_iters is None
    assert parse("--preset=agrawal", "--num_epochs=3", "--train_iters=5").train_iters == 5


@pytest.mark.parametrize("cls", [VanillaOptions, CycleOptions])
def test_presets_are_valid_and_change_something(cls):
    for name, (_, values) in cls.PRESETS.items():
        options = parse_command_line(cls, "", [f"--preset={name}"])
        assert options.to_dict() != parse_command_line(cls, "", ["--data=x"]).to_dict()
        assert values.items() <= options.to_dict().items()


def test_images_on_the_command_line_replace_those_of_the_preset():
    assert parse_cycle("--preset=hasey").X == "cat/grumpifyAprocessed" and parse_cycle("--preset=hasey").data is None
    replaced = parse_cycle("--preset=hasey", "--data=x")
    assert (replaced.X, replaced.Y, replaced.data, replaced.upsample) == (None, None, "x", "deconv")
    replaced = parse_cycle("--preset=apple2orange64", "--X=a", "--Y=b")
    assert (replaced.X, replaced.Y, replaced.data, replaced.disc) == ("a", "b", None, "patch")
    assert parse_cycle("--X=a", "--Y=b").preset is None and parse_cycle().preset == "toy_cats"


def test_a_preset_may_contain_weights_of_losses_that_the_command_line_turns_off():
    options = parse_cycle("--preset=cats256", "--no-use_cycle_consistency_loss")
    assert options.lambda_cycle == 5 and not options.use_cycle_consistency_loss


def test_the_forms_of_flags():
    assert parse("--batch_size", "3") == parse("--batch_size=3")
    assert parse("--spectral_norm").spectral_norm and not parse("--spectral_norm", "--no-spectral_norm").spectral_norm
    assert parse("--use_diffaug").use_diffaug == DIFFAUGMENT_ALL
    assert parse("--use_diffaug=color,cutout").use_diffaug == "color,cutout"
    assert parse("--preset=hasey").use_diffaug == ""
    assert parse("--preset=agrawal").use_diffaug == DIFFAUGMENT_ALL
    assert parse("--preset=agrawal", "--no-use_diffaug").use_diffaug == ""
    assert parse("--data_preprocess=deluxe").data_aug == "deluxe"
    assert parse("--data_preprocess=deluxe").lambda_codes == 0 < parse("--data_aug=basic").lambda_codes == 2
    with pytest.raises(SystemExit):
        parse("--data_aug=deluxe", "--lambda_codes=1")
    assert parse("--resume", "--name=x").resume == "" and parse("--resume", "runs/x").resume == "runs/x"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--image_size=48"], ["image_size", "48", "32, 64, 128, 256"]),
        (["--data_aug=fancy"], ["data_aug", "fancy", "deluxe_autocontrast"]),
        (["--batch_size=0"], ["--batch_size", "0", "at least 1"]),
        (["--batch_size=-4"], ["--batch_size", "-4", "at least 1"]),
        (["--batch_size=many"], ["batch_size", "many"]),
        (["--num_epochs=0"], ["--num_epochs", "0", "at least 1"]),
        (["--train_iters=0"], ["--train_iters", "at least 1"]),
        (["--conv_dim=-1"], ["--conv_dim", "-1", "at least 1"]),
        (["--noise_size=0"], ["--noise_size", "0", "at least 1"]),
        (["--lr=0"], ["--lr", "0", "above 0"]),
        (["--lr=nan"], ["--lr", "nan", "above 0"]),
        (["--lr=inf"], ["--lr", "inf", "above 0"]),
        (["--beta1=1"], ["--beta1", "1.0", "below 1"]),
        (["--ema_decay=1.5"], ["--ema_decay", "1.5", "below 1"]),
        (["--test_split=1"], ["--test_split", "1.0", "below 1"]),
        (["--seed=-1"], ["--seed", "-1", "at least 0"]),
        (["--use_diffaug=color,blur"], ["--use_diffaug", "'blur'", DIFFAUGMENT_ALL]),
        (["--preset=nobody"], ["--preset", "'nobody'", "hasey"]),
        (["--name=../x"], ["--name", "'../x'", "use a name without /"]),
        (["--name=a\\b"], ["--name", "'a\\\\b'", "use a name without /"]),
        (["--name="], ["--name", "''", "not a valid run name"]),
        (["--name=.."], ["--name", "'..'", "not a valid run name"]),
        (["--name=a\nb"], ["--name", "'a\\nb'", "leave them out"]),
        (["--name=\udcff"], ["--name", "'\\udcff'", "leave them out"]),
        (["--checkpoint_dir=runs/\udcff"], ["--checkpoint_dir", "'runs/\\udcff'", "not valid text", "another folder"]),
        (["--tracker=mlflow"], ["--tracker", "'mlflow'", "tensorboard, wandb"]),
        (["--r1_gamma=-1"], ["--r1_gamma", "-1.0", "at least 0"]),
        (["--r2_gamma=inf"], ["--r2_gamma", "inf", "at least 0"]),
        (["--penalty_every=0", "--r1_gamma=1"], ["--penalty_every", "0", "at least 1"]),
        (["--compile", "--r2_gamma=1"], ["--compile", "--r1_gamma or --r2_gamma", "leave one of them out"]),
        (["--penalty_every=4"], ["--penalty_every: does nothing without --r1_gamma or --r2_gamma", "add one"]),
        (["--features=inception"], ["--features: does nothing without --eval_every; add that flag"]),
        (["--inception_weights=x", "--eval_every=1"], ["--inception_weights", "--features inception", "add that flag"]),
        (["--batch_size=1000000001"], ["--batch_size", "at least 1 and at most 1000000000"]),
        (["--num_workers=1001"], ["--num_workers", "at most 1000"]),
        (["a\nb"], ["unrecognized arguments: a b"]),
        (["--batch_size=--"], ["--batch_size", "'--'"]),
        (["--resume"], ["--resume", "RUN_FOLDER"]),
        (["--batchsize=3"], ["--batchsize=3", "did you mean --batch_size?", "--help"]),
        (["--colour"], ["--colour (--help"]),
        (["--lr"], ["--lr", "expected one argument"]),
    ],
)
def test_mistakes_get_one_line_that_names_flag_value_and_remedy(capsys, arguments, words):
    message = refused(capsys, *arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["cats 2", "\u732b\u3000\u732b", "caf\u00e9\u00a0noir", "\U0001f469\u200d\U0001f52c"])
def test_names_may_have_any_letters_and_spaces(name):
    """Runs with such names exist, and every command has to accept their options."""
    assert parse(f"--name={name}").name == name


@pytest.mark.parametrize("flag", ["--ext", "--name", "--data", "--sample_dir"])
def test_two_dashes_are_not_a_list(flag, capsys):
    """Python 3.11 makes an empty list of them, newer versions the text."""
    try:
        assert getattr(parse(f"{flag}=--"), flag[2:]) == "--"
    except SystemExit as stop:
        err = capsys.readouterr().err
        assert stop.code == 2 and err.startswith(f"vanilla_gan.py: error: {flag}: '--' is not a value")


def test_flags_are_not_abbreviated(capsys):
    assert "--batch" in refused(capsys, "--batch=3")


def test_help_shows_every_flag_with_group_choices_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "The manual." in text
    for field in option_fields(VanillaOptions):
        meta = field.metadata
        assert f"--{field.name}" in text and f"{meta['group']}:" in text
        assert " ".join(meta["help"].split()) in text
        assert meta["choices"] is None or "{" + ",".join(map(str, meta["choices"])) + "}" in text
        shown = f"(default: {field.default})"
        assert field.default in (None, "") or f"{' '.join(meta['help'].split())} {shown}" in text, field.name


@pytest.mark.parametrize("cls", [VanillaOptions, CycleOptions])
def test_preset_list_prints_one_line_each(cls, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line(cls, "", ["--preset=list"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and [line.split()[0] for line in lines] == list(cls.PRESETS)


def test_a_request_to_resume_is_not_checked_as_a_run(capsys):
    """Its flags are checked together with the options of the run, which only the run folder knows."""
    flags = (
        "--lambda_identity=2",
        "--pool_size=4",
        "--X=a",
        "--image_size=48",
        "--lambda_cycle=3",
        "--penalty_every=2",
    )
    for flag in flags:
        request = parse_cycle("--resume=x", "--data=y", flag)
        with pytest.raises(ValueError):
            request.check_combinations()


def test_the_default_name_tells_script_data_augmentation_and_losses():
    assert default_stem(parse()) == "vanilla_gan-toy_cats-basic-vanilla-diffaug"
    named = parse("--data=a/b/", "--data_aug=deluxe", "--gan_mode=hinge")
    assert default_stem(named) == "vanilla_gan-b-deluxe-hinge"
    assert default_stem(parse_cycle()) == "cycle_gan-toy_cats-basic-vanilla-cycle-L1-identity-diffaug"
    assert default_stem(parse_cycle("--X=a/b", "--Y=c")) == "cycle_gan-b-c-basic-lsgan"
    assert default_stem(parse_cycle("--preset=hasey")).startswith("cycle_gan-grumpifyAprocessed-grumpifyBprocessed-")
    with_cycle = parse_cycle("--data=d", "--use_cycle_consistency_loss", "--loss_type=SSIM")
    assert default_stem(with_cycle) == "cycle_gan-d-basic-lsgan-cycle-SSIM"


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py", "evaluate.py", "generate.py"])
@pytest.mark.parametrize("argument", ["--help", "--image_size=47"])
def test_help_and_mistakes_come_without_importing_torch(script, argument):
    """An import of torch would be on the list of modules that -X importtime prints."""
    command = [sys.executable, "-X", "importtime", str(ROOT / script), argument]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    modules = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time")}
    assert "options" in modules and not modules & {"torch", "numpy", "PIL", "matplotlib"}


def test_choices_are_the_names_that_the_code_knows():
    choices = {field.name: field.metadata["choices"] for field in option_fields(VanillaOptions)}
    assert choices["data_aug"] == tuple(AUGMENTATIONS)
    assert set(choices["disc"]) < set(models.DISCRIMINATORS)
    assert choices["gan_mode"] == tuple(losses.ADVERSARIAL_LOSSES)
    assert choices["image_size"] == IMAGE_SIZES
    assert choices["init_type"] == tuple(INITS)
    assert choices["lr_policy"] == tuple(LR_POLICIES)
    assert choices["norm"] == tuple(NORMS)
    assert choices["tracker"] == tuple(TRACKERS)
    assert choices["upsample"] == tuple(UPSAMPLES)
    assert choices["device"] == DEVICES
    assert tuple(DIFFAUGMENT_ALL.split(",")) == tuple(diff_augment.POLICIES)
    choices = {field.name: field.metadata["choices"] for field in option_fields(CycleOptions)}
    assert choices["cycle_loss"] == tuple(losses.CYCLE_LOSSES)
    assert choices["disc"] == tuple(models.DISCRIMINATORS)
    assert choices["gen"] == tuple(models.GENERATORS)
    assert choices["upsample"] == tuple(UPSAMPLES)


def test_every_default_passes_its_own_check():
    for cls in (VanillaOptions, CycleOptions):
        cls().check()
        cls().check_combinations()
        assert vars(make_parser(cls, "").parse_args([])) == {}, "the parser leaves defaults to the class"


def test_saved_options_come_back():
    options = parse("--preset=agrawal", "--seed=3")
    assert VanillaOptions.from_dict(options.to_dict()) == options
    with pytest.raises(ValueError, match="'magic' is unknown"):
        VanillaOptions.from_dict({**options.to_dict(), "magic": 1})


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().lr = 1.0


RESUMABLE = {
    "data", "name", "checkpoint_dir", "resume", "cache_gb", "amp", "num_workers", "train_iters", "num_epochs",
    "log_step", "sample_every", "checkpoint_every", "keep_checkpoints", "eval_every", "features", "inception_weights",
    "device", "cuda_graph", "threads", "strict", "tracker",
}  # fmt: skip


def test_which_options_are_resumable():
    for cls, resumable in ((VanillaOptions, RESUMABLE), (CycleOptions, RESUMABLE - {"num_epochs"} | {"X", "Y"})):
        assert {field.name for field in option_fields(cls) if field.metadata["resumable"]} == resumable


def test_a_resumed_run_takes_lengths_and_refuses_the_rest():
    saved = parse("--train_iters=100", "--lr=1e-3")
    assert saved.merge_resume_request(parse("--resume=x")).train_iters == 100
    assert saved.merge_resume_request(parse("--resume=x", "--train_iters=200")).train_iters == 200
    assert saved.merge_resume_request(parse("--resume=x", "--lr=1e-3")).lr == 1e-3, "the same value is no change"
    longer = saved.merge_resume_request(parse("--resume=x", "--num_epochs=9"))
    assert (longer.num_epochs, longer.train_iters) == (9, None)
    with pytest.raises(ValueError, match=r"--lr: this run has 0\.001, the command says 0\.0005"):
        saved.merge_resume_request(parse("--resume=x", "--lr=5e-4"))


def test_common_options_hold_what_both_scripts_share():
    common, vanilla, cycle = (
        {field.name for field in option_fields(cls)} for cls in (CommonOptions, VanillaOptions, CycleOptions)
    )
    assert vanilla - common == {
        "data", "num_epochs", "conv_dim", "noise_size", "self_modulation", "split_noise", "fine_channels",
        "lambda_modes", "lambda_codes", "code_range", "disc", "upsample",
    }  # fmt: skip
    assert vanilla & cycle - common == {"data", "disc", "upsample"}, "these differ in what they mean"


def test_folders_become_absolute(tmp_path, monkeypatch):
    """Folders that exist; names below data/ and folders that are missing stay as they are."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse("--data=here").with_absolute_paths().data == str(tmp_path / "here")
    assert parse("--data=cat/b").with_absolute_paths().data == "cat/b"
    assert parse().with_absolute_paths().data is None and parse("--data= ").with_absolute_paths().data == " "
    options = parse_cycle("--X=here", "--Y=there").with_absolute_paths()
    assert (options.X, options.Y) == (str(tmp_path / "here"), "there")


def test_the_home_of_an_unknown_user_stays_as_it_is():
    """pathlib would raise a RuntimeError."""
    unknown = "~no-such-user"
    options = parse(f"--data={unknown}", "--eval_every=1", f"--features={unknown}").with_absolute_paths()
    assert (options.data, options.features) == (unknown, unknown)
    assert parse("--data=~").with_absolute_paths().data == os.path.realpath(os.path.expanduser("~"))


def test_hints():
    assert give_hints(parse("--data=x"), 2000, 5000) == [] == give_hints(parse("--data=x", "--use_diffaug"), 10, 5000)
    assert ["10 images" in hint for hint in give_hints(parse("--data=x"), 10, 5000)] == [True]
    assert ["7 iterations" in hint for hint in give_hints(parse("--data=x"), 2000, 7)] == [True]
    hints = give_hints(parse_cycle("--X=a", "--Y=a"), 2000, 5000)
    assert ["--use_cycle_consistency_loss" in hint or "same folder" in hint for hint in hints] == [True, True]
    assert give_hints(parse_cycle(), 2000, 5000) == []


# Each way to read the command line of the process: a command that is right, and how it is read.
OWN_COMMAND_LINES = {
    "vanilla_gan.py": ([], lambda: parse_command_line(VanillaOptions, "")),
    "evaluate.py": (["run"], lambda: parse_command(EvaluateOptions, "")),
    "generate.py": (["sample", "run", "-n", "1", "-o", "x"], lambda: parse_subcommand(generate.OPTIONS_OF, "")),
}


@pytest.fixture(params=OWN_COMMAND_LINES)
def own_command_line(request, monkeypatch):
    """Reads a command line of this process, with added arguments; returns what Ctrl-C does then, and restores it."""
    right, read = OWN_COMMAND_LINES[request.param]
    before = signal.getsignal(signal.SIGINT)

    def read_with(*added: str):
        monkeypatch.setattr(sys, "argv", [request.param, *right, *added])
        with contextlib.suppress(SystemExit):
            read()
        return signal.getsignal(signal.SIGINT)

    yield read_with
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_import_of_torch_without_a_traceback(own_command_line):
    assert own_command_line() == signal.SIG_DFL


@pytest.mark.parametrize("argument", ["--bogus", "--help"])
def test_a_program_that_ends_early_leaves_ctrl_c_as_it_was(own_command_line, argument):
    assert own_command_line(argument) is signal.default_int_handler


def test_ctrl_c_does_not_end_a_session(own_command_line, monkeypatch):
    """Such as a notebook, IPython, or python -i: all set sys.ps1."""
    monkeypatch.setattr(sys, "ps1", "In: ", raising=False)
    assert own_command_line() is signal.default_int_handler


def test_a_command_line_may_be_read_in_a_thread(own_command_line):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(own_command_line).result() is signal.default_int_handler

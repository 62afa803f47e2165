"""The command line: precedence, checks, messages, and what a resumed run may change."""

import dataclasses
import os
import subprocess
import sys

import pytest

import data_loader
import diff_augment
import losses
import models
import trainer
from options import (
    DIFFAUGMENT_ALL,
    CommonOptions,
    CycleOptions,
    VanillaOptions,
    build_parser,
    option_fields,
    parse_command_line,
)
from tests.conftest import ROOT


def parse(*argv: str) -> VanillaOptions:
    return parse_command_line(VanillaOptions, argv, "vanilla_gan.py", "The manual.")


def refused(capsys, *argv: str) -> str:
    """Parse what must be refused; return the one line that says why."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("vanilla_gan.py: error: ")
    return err


def test_explicit_beats_preset_beats_default():
    assert parse().lr == 5e-4 and parse().num_epochs == 100
    assert parse("--preset=hasey").lr == 2e-4 and parse("--preset=hasey").upsample == "deconv"
    assert parse("--preset=hasey", "--lr=1e-3").lr == 1e-3
    assert parse("--data=x").norm == "instance" and parse().norm == "batch", "without images the preset is toy_cats"
    assert parse().preset == "toy_cats" and parse("--data=x").preset is None
    assert parse("--norm=none").norm == "none"
    assert parse("--lr", "5e-4", "--preset", "hasey").lr == 5e-4, "also when the explicit value is the default"


def test_length_in_epochs_beats_the_presets_iterations():
    assert parse("--preset=agrawal").train_iters == 6400
    assert parse("--preset=agrawal", "--num_epochs=3").train_iters is None
    assert parse("--preset=agrawal", "--num_epochs=3", "--train_iters=5").train_iters == 5


@pytest.mark.parametrize("cls", [VanillaOptions, CycleOptions])
def test_presets_are_valid_and_change_something(cls):
    for name, (_, values) in cls.PRESETS.items():
        options = parse_command_line(cls, [f"--preset={name}"], "prog", "")
        assert options.to_dict() != parse_command_line(cls, ["--data=x"], "prog", "").to_dict()
        assert values.items() <= options.to_dict().items()


def test_images_on_the_command_line_replace_those_of_the_preset():
    def cycle(*argv):
        return parse_command_line(CycleOptions, argv, "cycle_gan.py", "")

    assert cycle("--preset=hasey").X == "cat/grumpifyAprocessed" and cycle("--preset=hasey").data is None
    replaced = cycle("--preset=hasey", "--data=x")
    assert (replaced.X, replaced.Y, replaced.data, replaced.upsample) == (None, None, "x", "deconv")
    replaced = cycle("--preset=apple2orange64", "--X=a", "--Y=b")
    assert (replaced.X, replaced.Y, replaced.data, replaced.disc) == ("a", "b", None, "patch")
    assert cycle("--X=a", "--Y=b").preset is None and cycle().preset == "toy_cats"


def test_options_that_one_alone_would_not_use():
    """A preset may hold weights of losses that the command line turns off."""
    argv = ["--preset=cats256", "--no-use_cycle_consistency_loss"]
    assert not parse_command_line(CycleOptions, argv, "cycle_gan.py", "").use_cycle_consistency_loss


def test_flag_forms():
    assert parse("--batch_size", "3") == parse("--batch_size=3")
    assert parse("--spectral_norm").spectral_norm and not parse("--spectral_norm", "--no-spectral_norm").spectral_norm
    assert parse("--use_diffaug").use_diffaug == DIFFAUGMENT_ALL
    assert parse("--use_diffaug=color,cutout").use_diffaug == "color,cutout"
    assert parse("--preset=hasey").use_diffaug == ""
    assert parse("--preset=agrawal").use_diffaug == DIFFAUGMENT_ALL
    assert parse("--preset=agrawal", "--no-use_diffaug").use_diffaug == ""
    assert parse("--data_preprocess=deluxe").data_aug == "deluxe"
    assert parse("--resume", "--name=x").resume == "" and parse("--resume", "runs/x").resume == "runs/x"


@pytest.mark.parametrize(
    "argv, words",
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
        (["--name=../x"], ["--name", "'../x'"]),
        (["--name=a\\b"], ["--name"]),
        (["--name="], ["--name", "''"]),
        (["--name=a\nb"], ["--name", "'a\\nb'", "leave them out"]),
        (["--name=\udcff"], ["--name", "no text"]),
        (["--name=" + 128 * "ü"], ["--name", "too long", "255 bytes"]),
        (["--checkpoint_dir=runs/\udcff"], ["--checkpoint_dir", "no text"]),
        (["--batch_size=1000000001"], ["--batch_size", "at least 1 and at most 1000000000"]),
        (["--num_workers=1001"], ["--num_workers", "at most 1000"]),
        (["a\nb"], ["unrecognized arguments: a b"]),
        (["--resume"], ["--resume", "RUN_FOLDER"]),
        (["--batchsize=3"], ["--batchsize=3", "did you mean --batch_size?", "--help"]),
        (["--colour"], ["--colour (--help"]),
        (["--lr"], ["--lr", "expected one argument"]),
    ],
)
def test_mistakes_get_one_line_that_names_flag_value_and_remedy(capsys, argv, words):
    message = refused(capsys, *argv)
    assert all(word in message for word in words), message


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
        assert field.default in (None, "") or f"(default: {field.default})" in text


@pytest.mark.parametrize("cls", [VanillaOptions, CycleOptions])
def test_preset_list_prints_one_line_each(cls, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line(cls, ["--preset=list"], "prog", "")
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and [line.split()[0] for line in lines] == list(cls.PRESETS)


def test_a_request_to_resume_is_not_checked_as_a_run(capsys):
    """Its options are those of the run; what it adds is compared with them."""
    for flag in ("--lambda_identity=2", "--pool_size=4", "--X=a", "--image_size=48", "--lambda_cycle=3"):
        request = parse_command_line(CycleOptions, ["--resume=x", "--data=y", flag], "cycle_gan.py", "")
        with pytest.raises(ValueError):
            request.check_together()


def test_name_parts():
    def cycle(*argv):
        return parse_command_line(CycleOptions, argv, "cycle_gan.py", "").name_parts()

    assert parse().name_parts() == ["toy_cats", "basic", "lsgan", "diffaug"]
    assert parse("--data=a/b/", "--data_aug=deluxe", "--gan_mode=hinge").name_parts() == ["b", "deluxe", "hinge"]
    assert cycle() == ["toy_cats", "basic", "lsgan", "cycle", "L1", "identity", "diffaug"]
    assert cycle("--X=a/b", "--Y=c") == ["b", "c", "basic", "lsgan"]
    assert cycle("--preset=hasey")[:2] == ["grumpifyAprocessed", "grumpifyBprocessed"]
    assert cycle("--data=d", "--use_cycle_consistency_loss", "--loss_type=SSIM") == [
        "d",
        "basic",
        "lsgan",
        "cycle",
        "SSIM",
    ]


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
@pytest.mark.parametrize("argument", ["--help", "--image_size=47"])
def test_answers_without_importing_torch(script, argument):
    """An import of torch would be on the list of modules that -X importtime prints."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / script), argument],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    modules = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time")}
    assert "options" in modules and not modules & {"torch", "numpy", "PIL", "matplotlib"}


def test_choices_are_the_names_that_the_code_knows():
    choices = {field.name: field.metadata["choices"] for field in option_fields(VanillaOptions)}
    assert choices["data_aug"] == tuple(data_loader.AUGMENTATIONS)
    assert set(choices["disc"]) < set(models.DISCRIMINATORS)
    assert choices["gan_mode"] == tuple(losses.GAN_MODES)
    assert choices["image_size"] == models.IMAGE_SIZES
    assert choices["init_type"] == tuple(models.INITS)
    assert choices["lr_policy"] == tuple(trainer.LR_POLICIES)
    assert choices["norm"] == tuple(models.NORMS)
    assert choices["upsample"] == tuple(models.UPSAMPLES)
    assert tuple(DIFFAUGMENT_ALL.split(",")) == tuple(diff_augment.POLICIES)
    choices = {field.name: field.metadata["choices"] for field in option_fields(CycleOptions)}
    assert choices["cycle_loss"] == tuple(losses.CYCLE_LOSSES)
    assert choices["disc"] == tuple(models.DISCRIMINATORS)
    assert choices["gen"] == tuple(models.GENERATORS)
    assert choices["upsample"] == tuple(models.UPSAMPLES)


def test_every_default_passes_its_own_check():
    VanillaOptions().check()
    assert build_parser(VanillaOptions, "x", "").parse_args([]).__dict__ == {}


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
    "device", "cuda_graph", "strict",
}  # fmt: skip


def test_what_is_resumable():
    for cls, resumable in ((VanillaOptions, RESUMABLE), (CycleOptions, RESUMABLE - {"num_epochs"} | {"X", "Y"})):
        assert {field.name for field in option_fields(cls) if field.metadata["resumable"]} == resumable


def test_resumed_run_takes_lengths_and_refuses_the_rest():
    saved = parse("--train_iters=100", "--lr=1e-3")
    assert saved.resumed_with(parse("--resume=x")).train_iters == 100
    assert saved.resumed_with(parse("--resume=x", "--train_iters=200")).train_iters == 200
    assert saved.resumed_with(parse("--resume=x", "--lr=1e-3")).lr == 1e-3, "the same value is no change"
    longer = saved.resumed_with(parse("--resume=x", "--num_epochs=9"))
    assert (longer.num_epochs, longer.train_iters) == (9, None)
    with pytest.raises(ValueError, match=r"--lr: this run has 0\.001, the command says 0\.0005"):
        saved.resumed_with(parse("--resume=x", "--lr=5e-4"))


def test_common_options_hold_what_both_scripts_share():
    common, vanilla, cycle = (
        {field.name for field in option_fields(cls)} for cls in (CommonOptions, VanillaOptions, CycleOptions)
    )
    assert vanilla - common == {"data", "num_epochs", "conv_dim", "noise_size", "disc", "upsample"}
    assert vanilla & cycle - common == {"data", "disc", "upsample"}, "these differ in what they mean"


def test_folders_become_absolute(tmp_path, monkeypatch):
    """Those that are there; names below data/ and folders that are missing stay as they are."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse("--data=here").with_absolute_folders().data == str(tmp_path / "here")
    assert parse("--data=cat/b").with_absolute_folders().data == "cat/b"
    assert parse().with_absolute_folders().data is None and parse("--data= ").with_absolute_folders().data == " "
    options = parse_command_line(CycleOptions, ["--X=here", "--Y=there"], "cycle_gan.py", "").with_absolute_folders()
    assert (options.X, options.Y) == (str(tmp_path / "here"), "there")


def test_the_home_of_nobody_is_no_folder():
    """pathlib would raise a RuntimeError."""
    options = parse("--data=~nobody", "--eval_every=1", "--features=~nobody").with_absolute_folders()
    assert (options.data, options.features) == ("~nobody", "~nobody")
    assert parse("--data=~").with_absolute_folders().data == os.path.realpath(os.path.expanduser("~"))


def test_hints():
    assert parse("--data=x").hints(2000, 5000) == [] == parse("--data=x", "--use_diffaug").hints(10, 5000)
    assert ["10 images" in hint for hint in parse("--data=x").hints(10, 5000)] == [True]
    assert ["7 iterations" in hint for hint in parse("--data=x").hints(2000, 7)] == [True]
    cycle = parse_command_line(CycleOptions, ["--X=a", "--Y=a"], "cycle_gan.py", "")
    assert ["way back" in hint or "same folder" in hint for hint in cycle.hints(2000, 5000)] == [True, True]
    assert parse_command_line(CycleOptions, [], "cycle_gan.py", "").hints(2000, 5000) == []

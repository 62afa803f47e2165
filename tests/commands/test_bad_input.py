"""Mistakes of the user: one line on stderr with flag, value and remedy, exit code 2, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import vanilla_gan
from sources import folders
from system.program import run_main
from tests.conftest import command, resume, train


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def workspace(tmp_path, photos):
    """Folders to make mistakes with."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("not an image")
    (tmp_path / "file").touch()
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "thesis.txt").write_text("precious")
    return tmp_path


MISTAKES = {
    "missing folder": (["--data={tmp}/nowhere"], ["--data", "nowhere", "give the folder"]),
    "empty folder": (["--data={tmp}/empty"], ["--data", "empty", ".png", ".webp"]),
    "file for a folder": (["--data={tmp}/file"], ["--data", "file", "give the folder"]),
    "only unreadable images": (["--data={tmp}/broken"], ["broken", "a.png", ".png"]),
    "no file with that extension": (["--ext=bmp"], ["--ext", "photos", ".bmp"]),
    "unknown extension": (["--ext=gif"], ["--ext", "gif", "png"]),
    "image size": (["--image_size=100"], ["image_size", "100", "32, 64, 128, 256"]),
    "flag value": (["--disc=cycle"], ["disc", "cycle", "dc, patch"]),
    "negative": (["--conv_dim=-3"], ["--conv_dim", "-3", "at least 1"]),
    "zero": (["--train_iters=0"], ["--train_iters", "0", "at least 1"]),
    "taken name": (["--name=taken"], ["--name", "taken", "--resume", "another name"]),
    "name outside": (["--name=../x"], ["--name", "../x"]),
    "unwritable runs": (["--checkpoint_dir={tmp}/file/runs"], ["--checkpoint_dir", "file"]),
    "unwritable grids": (["--sample_dir={tmp}/file"], ["--sample_dir", "file"]),
    "policy": (["--use_diffaug=colour"], ["--use_diffaug", "colour", "color,translation,cutout"]),
    "fp16 on a CPU": (["--amp=fp16"], ["--amp", "fp16", "bf16"]),
    "hold out all": (["--test_split=0.99"], ["--test_split", "0.99", "smaller"]),
    "home of an unknown user": (["--data=~no-such-user"], ["--data", "~no-such-user", "give the folder"]),
    "long name of images": (["--data=" + 300 * "x"], ["--data: the folder xxx", "x does not exist"]),
    "long name of features": (
        ["--eval_every=1", "--features=" + 300 * "x"],
        ["--features: the file xxx", "does not exist"],
    ),
    "features in the home of an unknown user": (
        ["--eval_every=1", "--features=~no-such-user"],
        ["--features", "~no-such-user"],
    ),
    "a batch without pairs": (
        ["--lambda_modes=1", "--batch_size=1"],
        ["--lambda_modes", "pairs", "is 1", "at least 2"],
    ),
    "codes, and a batch without pairs": (
        ["--lambda_codes=1", "--batch_size=1"],
        ["--lambda_codes", "pairs", "is 1", "at least 2"],
    ),
    "mode seeking and codes of a preset, and a batch without pairs": (
        ["--preset=few_images", "--batch_size=1"],
        ["--lambda_modes of the preset few_images", "pairs", "or --lambda_modes 0 --lambda_codes 0"],
    ),
    "codes of a preset, and images that change": (
        ["--preset=few_images", "--data_aug=deluxe"],
        ["--lambda_codes of the preset few_images", "use --data_aug basic"],
    ),
    "codes of a preset, and images that are not in memory": (
        ["--preset=few_images", "--cache_gb=0"],
        ["--lambda_codes of the preset few_images", "larger --cache_gb"],
    ),
    "codes of images that change": (
        ["--lambda_codes=1", "--data_aug=deluxe"],
        ["--lambda_codes", "--data_aug deluxe", "use --data_aug basic"],
    ),
    "codes of images that are not in memory": (
        ["--lambda_codes=1", "--cache_gb=0"],
        ["--lambda_codes", "in memory", "larger --cache_gb"],
    ),
    "a range of codes without codes": (["--code_range=0.5"], ["--code_range", "does nothing without --lambda_codes"]),
    "codes beyond random latents": (["--lambda_codes=1", "--code_range=2"], ["--code_range", "2", "at most 1"]),
    "parts of z without layers that take them": (["--split_noise"], ["--split_noise", "--self_modulation", "add"]),
    "fewer numbers than parts of z": (
        ["--split_noise", "--self_modulation", "--noise_size=3"],
        ["--noise_size", "3 is less than the 4 parts", "at least 4, or --no-split_noise"],
    ),
    "a part of z for the fine layer, too": (
        ["--split_noise", "--self_modulation", "--fine_channels=2", "--noise_size=4"],
        ["--noise_size", "4 is less than the 5 parts"],
    ),
    "a batch without pairs of features": (
        ["--lambda_features=1", "--batch_size=1"],
        ["--lambda_features", "is 1", "at least 2"],
    ),
    "batch too large for the memory": (["--batch_size=1000000000"], ["out of memory", "lower --batch_size"]),
    "network too large for the memory": (["--conv_dim=1000000000"], ["out of memory", "width of the networks"]),
    "long name": (["--name=" + 128 * "ü"], ["--name: üü", "too long", "another name"]),
    "new runs and unwritable grids": (
        ["--checkpoint_dir={tmp}/new/runs", "--sample_dir={tmp}/file"],
        ["--sample_dir", "file"],
    ),
    "long name of runs": (["--checkpoint_dir={tmp}/" + 300 * "x"], ["--checkpoint_dir", "too long", "another folder"]),
    "long name of grids": (["--sample_dir={tmp}/" + 300 * "x"], ["--sample_dir", "too long", "another folder"]),
    "long name of a run": (["--resume=" + 300 * "x"], ["--resume", "does not exist"]),
    "resume a folder without a run": (["--resume={tmp}/empty"], ["--resume", "empty", "not a run folder", "runs/NAME"]),
    "folder of folders": (["--data={tmp}"], ["--data", "broken, empty, photos, runs", "give one of them"]),
    "resume without a run": (["--resume"], ["--resume", "RUN_FOLDER"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_of_vanilla_gan(mistake, workspace, capsys):
    arguments, words = MISTAKES[mistake]
    flags = [f"--data={workspace / 'photos'}", f"--checkpoint_dir={workspace / 'runs'}"]
    before = snapshot(workspace)
    code = train(*flags, "--train_iters=1", *[argument.format(tmp=workspace) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("vanilla_gan.py: error: "), err
    assert all(word in err for word in words), err
    assert snapshot(workspace) == before


CYCLE_MISTAKES = {
    "only one domain": (["--X={tmp}/photos"], ["--Y", "missing", "--X", "photos", "both"]),
    "both ways": (["--X={tmp}/photos", "--data={tmp}"], ["--data", "--X or --Y"]),
    "no domains": (["--data={tmp}/photos"], ["--data", "photos", "trainA", "--X and --Y"]),
    "missing folder": (["--X={tmp}/photos", "--Y={tmp}/nowhere"], ["--Y", "nowhere", "give the folder"]),
    "unreadable domain": (["--X={tmp}/photos", "--Y={tmp}/broken"], ["--Y", "broken", "a.png"]),
    "odd size": (["--image_size=50", "--disc=patch"], ["--image_size", "50", "multiple of 4"]),
    "small size": (["--image_size=32", "--n_downsample=4"], ["--image_size", "32", "from 64 on"]),
    "size of dc": (["--image_size=48", "--disc=dc"], ["--image_size", "48", "--disc dc", "--disc patch"]),
    "size of toy cats": (
        ["--image_size=48", "--disc=patch"],
        ["--image_size", "size 48", "32, 64, 128, 256", "or a folder of images"],
    ),
    "unused weight": (["--lambda_cycle=3", "--data={tmp}"], ["--lambda_cycle", "--use_cycle_consistency_loss"]),
    "unused distance": (["--loss_type=L2", "--data={tmp}"], ["--cycle_loss", "--use_cycle_consistency_loss"]),
    "unused identity": (["--lambda_identity=3", "--data={tmp}"], ["--lambda_identity", "--use_identity_loss"]),
    "small pool": (["--pool_size=3"], ["--pool_size", "3", "batch of 4"]),
    "unknown distance": (["--cycle_loss=L3"], ["cycle_loss", "L3", "L1, L2, SSIM"]),
    "unknown generator": (["--gen=unet"], ["gen", "unet", "cycle, resnet_6blocks, resnet_9blocks"]),
}


@pytest.mark.parametrize("mistake", CYCLE_MISTAKES)
def test_mistake_of_cycle_gan(mistake, workspace, capsys):
    arguments, words = CYCLE_MISTAKES[mistake]
    before = snapshot(workspace)
    arguments = [argument.format(tmp=workspace) for argument in arguments]
    code = train(f"--checkpoint_dir={workspace / 'runs'}", "--train_iters=1", *arguments, script="cycle_gan.py")
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("cycle_gan.py: error: "), err
    assert all(word in err for word in words), err
    assert snapshot(workspace) == before


@pytest.mark.parametrize("script, name", [("vanilla_gan.py", "--data"), ("cycle_gan.py", "--X")])
def test_a_missing_folder_of_a_preset(script, name, tmp_path, monkeypatch, capsys):
    """The message says that the folder comes from the preset."""
    monkeypatch.setattr(folders, "DATA_ROOT", tmp_path)
    assert train("--preset=hasey", f"--checkpoint_dir={tmp_path / 'runs'}", script=script) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and f"{name} of the preset hasey: the folder cat/grumpify" in err
        and "does not exist" in err
    )


def test_mistake_on_the_command_line(tmp_path):
    """The same through the shell: no traceback, exit code 2."""
    script = Path(__file__).parent.parent.parent / "vanilla_gan.py"
    result = command(script, "--data", str(tmp_path / "nowhere"), "--checkpoint_dir", str(tmp_path / "runs"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "nowhere" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def finished(tmp_path, photos):
    """A run with checkpoints at 1 and 2."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run"]
    assert train(*flags, "--train_iters=2", "--checkpoint_every=1", "--log_step=1") == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--lr=0.5"], ["--lr", "0.0005", "0.5", "new run"]),
        (["--image_size=64"], ["--image_size", "32", "64"]),
        (["--use_diffaug"], ["--use_diffaug", "''", "color,translation,cutout"]),
        (["--preset=hasey"], ["--preset", "None", "hasey"]),
        (["--sample_dir=x"], ["--sample_dir", "None", "'x'"]),
        (["--name=other"], ["--name", "run", "other"]),
    ],
)
def test_resume_with_other_options(finished, capsys, arguments, words):
    capsys.readouterr()
    before = snapshot(finished)
    assert resume(f"--resume={finished}", "--train_iters=3", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in words), err
    assert snapshot(finished) == before


def test_resume_after_the_images_changed(finished, photos, capsys):
    (photos / "3.png").rename(photos / "33.png")
    before = snapshot(finished)
    assert resume(f"--resume={finished}", "--train_iters=3") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the run began with: 1 missing (3.png). Restore" in err
    assert snapshot(finished) == before


def test_resume_after_the_test_images_changed(domains, tmp_path, capsys):
    """The grids show them, so they would differ from the grids of an uninterrupted run."""
    flags = [f"--data={domains}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags, script="cycle_gan.py") == 0
    (domains / "testB" / "1.png").rename(domains / "testB" / "9.png")
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=2", script="cycle_gan.py") == 2
    assert "1 missing from the test images (1.png). Restore" in capsys.readouterr().err


def test_resume_from_another_folder(domains, tmp_path, monkeypatch):
    """A relative path means the same folder as when the run began."""
    monkeypatch.chdir(tmp_path)
    flags = ["--X=domains/trainA", "--Y=domains/trainB", "--checkpoint_dir=.", "--name=run", "--train_iters=1"]
    assert train(*flags, script="cycle_gan.py") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume("--resume=../run", "--train_iters=2", script="cycle_gan.py") == 0


def test_resume_with_flags_that_contradict_the_options_of_the_run(domains, tmp_path, capsys):
    """The run has --X and --Y; --data of the command that resumes the run would be a second source."""
    flags = [f"--X={domains / 'trainA'}", f"--Y={domains / 'trainB'}", f"--checkpoint_dir={tmp_path}", "--name=run"]
    assert train(*flags, "--train_iters=1", script="cycle_gan.py") == 0
    before = snapshot(tmp_path / "run")
    assert resume(f"--resume={tmp_path / 'run'}", f"--data={domains}", "--train_iters=2", script="cycle_gan.py") == 2
    expected = "--data: the images of this run are given by --X and --Y; use --X and --Y instead"
    assert expected in capsys.readouterr().err and snapshot(tmp_path / "run") == before


def test_resume_after_the_images_moved(domains, tmp_path, capsys):
    """--data tells the run where the images are now; other images in that place are refused."""
    flags = [f"--data={domains}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags, script="cycle_gan.py") == 0
    domains.rename(tmp_path / "moved")
    request = [f"--resume={tmp_path / 'run'}", "--train_iters=2"]
    assert resume(*request, script="cycle_gan.py") == 2 and "--data: the folder" in (err := capsys.readouterr().err)
    assert "does not exist" in err
    assert resume(*request, f"--data={tmp_path / 'moved'}", script="cycle_gan.py") == 0
    (tmp_path / "moved" / "trainA").rename(tmp_path / "moved" / "x")
    (tmp_path / "moved" / "trainB").rename(tmp_path / "moved" / "trainA")
    (tmp_path / "moved" / "x").rename(tmp_path / "moved" / "trainB")
    assert resume(request[0], "--train_iters=3", script="cycle_gan.py") == 2
    assert "are not those that the run began with: 3 missing (7.png, 8.png, 9.png)," in capsys.readouterr().err


def test_the_images_that_differ_are_named(photos, tmp_path, capsys):
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags) == 0
    (photos / "0.png").rename(photos / "new.png")
    (photos / "1.png").write_bytes((photos / "2.png").read_bytes())
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=2") == 2
    expected = "began with: 1 missing (0.png), 1 of another size (1.png). Restore the original images"
    assert expected in capsys.readouterr().err


def test_resume_from_a_newer_format(finished, capsys):
    path = finished / "checkpoint-000002.pt"
    torch.save({**torch.load(path, weights_only=True), "format": 999}, path)
    before = snapshot(finished)
    assert resume(f"--resume={finished}", "--train_iters=3") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "format 999" in err and "update" in err
    assert snapshot(finished) == before


def test_resume_of_another_script_or_a_newer_program(finished, capsys):
    path = finished / "options.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "script": "cycle_gan.py"}))
    assert resume(f"--resume={finished}") == 2
    assert "is a run of cycle_gan.py" in capsys.readouterr().err
    path.write_text(json.dumps({**saved, "options": {**saved["options"], "magic": 1}}))
    assert resume(f"--resume={finished}") == 2
    assert "'magic' is unknown" in capsys.readouterr().err


def test_resume_with_weights_that_do_not_fit(finished, capsys):
    path = finished / "options.json"
    path.write_text(path.read_text().replace('"conv_dim": 2', '"conv_dim": 3'))
    assert resume(f"--resume={finished}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--resume: the checkpoint does not fit the options of its run" in err
    assert "size mismatch for " in err, "PyTorch's own message names the first tensor that does not fit"


@pytest.mark.faults
def test_resume_without_any_readable_checkpoint(finished, capsys):
    for path in finished.glob("checkpoint-*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    (finished / "checkpoint-000001.pt").write_bytes(b"")
    assert resume(f"--resume={finished}") == 2
    out, err = capsys.readouterr()
    assert "contains no readable checkpoint; use another run, or start a new one" in err
    warnings = [line for line in out.splitlines() if "is not readable" in line]
    assert [line.endswith("; trying the previous one") for line in warnings] == [True, False]


def test_resume_moved_folder(finished, tmp_path):
    """A run that was moved and renamed continues in its new folder."""
    shutil.move(finished, tmp_path / "moved")
    assert resume(f"--resume={tmp_path / 'moved'}", "--train_iters=3") == 0
    assert (tmp_path / "moved" / "checkpoint-000003.pt").exists() and not finished.exists()


@pytest.mark.faults
@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
@pytest.mark.parametrize("step", [0, 1])
def test_an_error_in_a_step_leaves_only_the_run_folder(step, error, workspace, monkeypatch, capsys):
    """Without a checkpoint the name is free for the fixed command."""
    take_step = vanilla_gan.train_step

    def fail(state, batch, options, with_penalty):
        if state.step == step:
            raise error
        return take_step(state, batch, options, with_penalty)

    before = snapshot(workspace)
    monkeypatch.setattr(vanilla_gan, "train_step", fail)
    run, grids = workspace / "new" / "runs" / "run", workspace / "grids" / "run"
    flags = [f"--data={workspace / 'photos'}", f"--checkpoint_dir={run.parent}", "--name=run", "--train_iters=2"]
    flags += [f"--sample_dir={grids.parent}", "--checkpoint_every=1"]
    if error is MemoryError:
        assert train(*flags) == 2
    else:
        with pytest.raises(error):
            train(*flags)
    new = [Path(path) for path in snapshot(workspace) if path not in before]
    own = {*run.parents, run, *grids.parents, grids}
    assert all(path in own or path.parent in (run, grids) for path in new if ".cache" not in path.parts), new
    assert (run / "log.txt").exists() and bool(list(run.glob("*.pt"))) == (step == 1)

    # The fixed command.
    monkeypatch.setattr(vanilla_gan, "train_step", take_step)
    capsys.readouterr()
    if step == 0:
        assert train(*flags) == 0 and (run / "checkpoint-000002.pt").exists()
    else:
        assert train(*flags) == 2 and f"--name: {run} exists; use --resume {run}" in capsys.readouterr().err


@pytest.mark.faults
def test_an_error_leaves_a_run_that_can_be_resumed(finished, photos, monkeypatch):
    """Even a run without a checkpoint: it then starts from the beginning."""
    for path in finished.glob("checkpoint-*.pt"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(vanilla_gan, "train_step", lambda *_: [].pop())
        with pytest.raises(IndexError):
            resume(f"--resume={finished}", "--train_iters=3")
    assert (finished / "options.json").exists() and list((finished / "samples").iterdir())
    assert resume(f"--resume={finished}", "--train_iters=3") == 0 and (finished / "checkpoint-000003.pt").exists()


def test_the_check_that_nothing_is_written_can_fail(workspace):
    before = snapshot(workspace)
    assert run_main(lambda: (workspace / "new").write_text("x"), "prog") == 1
    assert snapshot(workspace) != before

"""Resumed runs: N iterations, a stop, and M more iterations are bit-identical to N + M iterations."""

import hashlib
import io
import json
import re
import shutil
import signal

import pytest
import torch

import data_loader
import layers.image_pool
import runs.folder
import vanilla_gan
from tests.conftest import MODULES, FinishedRun, assert_same, make_photo, resume, train
from training.optimizers import EagerAdam, Muon
from training.state import TrainingState

N, M = 5, 4  # the stop is not at a multiple of log_step, sample_every or checkpoint_every
CADENCE = ["--log_step=3", "--sample_every=4", "--checkpoint_every=4"]


CASES = {
    "vanilla_gan.py": {
        "default": [],
        "everything": [
            "--data_aug=deluxe", "--use_diffaug", "--spectral_norm", "--norm=batch", "--upsample=deconv",
            "--disc=patch",
        ],
        "streaming": ["--cache_gb=0", "--data_aug=deluxe_autocontrast", "--gan_mode=hinge"],
        "no average": ["--ema_decay=0", "--batch_size=16", "--lr_policy=linear", "--init_type=normal"],
        "bf16": ["--amp=bf16", "--lr_policy=cosine", "--gan_mode=vanilla", "--d_optimizer=muon", "--d_lr=1e-4"],
        "R3GAN": ["--gan_mode=relativistic", "--r1_gamma=1", "--r2_gamma=0.5", "--penalty_every=3"],
    },
    "cycle_gan.py": {
        "default": [],
        "everything": [
            "--use_cycle_consistency_loss", "--cycle_loss=SSIM", "--use_identity_loss", "--pool_size=10",
            "--data_aug=deluxe", "--use_diffaug", "--spectral_norm", "--norm=batch", "--disc=patch70",
        ],
        "streaming": ["--cache_gb=0", "--data_aug=deluxe_autocontrast", "--pool_size=30", "--gen=resnet_6blocks"],
        "no average": [
            "--ema_decay=0", "--batch_size=8", "--lr_policy=linear", "--upsample=deconv", "--amp=bf16", "--pool_size=8",
            "--use_cycle_consistency_loss", "--r1_gamma=1", "--penalty_every=2", "--d_optimizer=muon",
        ],
    },
}  # fmt: skip
BOTH = [(script, case) for script, cases in CASES.items() for case in cases]


def stop_at(monkeypatch, step: int, number: signal.Signals, script: str = "vanilla_gan.py") -> None:
    """Raise a signal during an iteration."""
    real = MODULES[script].train_step

    def train_step(state, batch, options, with_penalty):
        losses = real(state, batch, options, with_penalty)
        if state.step == step - 1:
            signal.raise_signal(number)
        return losses

    monkeypatch.setattr(MODULES[script], "train_step", train_step)


def assert_same_runs(a: FinishedRun, b: FinishedRun) -> None:
    """Assert that the final states, the losses and the grids of `a` are the same in `b`, to the last bit."""
    one, other = a.checkpoint(), b.checkpoint()
    assert one.keys() == other.keys()
    for part in one:
        if part != "options":
            assert_same(one[part], other[part], part)
    assert (a.folder / "losses.csv").read_bytes() == (b.folder / "losses.csv").read_bytes()
    names = {path.name for path in (a.folder / "samples").iterdir()}
    assert names <= {path.name for path in (b.folder / "samples").iterdir()}
    for name in names:
        assert (a.folder / "samples" / name).read_bytes() == (b.folder / "samples" / name).read_bytes(), name


@pytest.mark.golden
@pytest.mark.parametrize("script, case", BOTH)
def test_a_run_that_a_signal_stopped(script, case, images_of, tmp_path, monkeypatch):
    flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", f"--train_iters={N + M}", *CADENCE]
    flags += CASES[script][case]
    assert train(*flags, "--name=whole", script=script) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, N, signal.SIGTERM, script)
        assert train(*flags, "--name=parts", script=script) == 128 + signal.SIGTERM
    parts = FinishedRun(tmp_path / "parts")
    assert parts.steps("checkpoint-*.pt") == [4, N], "the iteration was finished and saved"
    assert f"{script} --resume {tmp_path / 'parts'}" in parts.log
    torch.manual_seed(999)  # numbers drawn in this process since must not matter
    assert resume(f"--resume={tmp_path / 'parts'}", script=script) == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("script", MODULES)
def test_exact_on_cuda(script, images_of, tmp_path):
    """With --deterministic; as a CUDA graph in the first part and in the second."""
    flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", "--device=cuda", "--deterministic"]
    flags += ["--use_diffaug", "--data_aug=deluxe", *CADENCE]
    assert train(*flags, "--name=whole", "--train_iters=40", script=script) == 0
    assert train(*flags, "--name=parts", "--train_iters=20", script=script) == 0
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=40", script=script) == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_a_finished_run_can_be_trained_longer(photos, tmp_path):
    """With a larger --train_iters; the run is given by --name."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", *CADENCE]
    assert train(*flags, "--name=whole", f"--train_iters={N + M}") == 0
    assert train(*flags, "--name=parts", f"--train_iters={N}") == 0
    assert resume("--resume", "--name=parts", f"--checkpoint_dir={tmp_path}", f"--train_iters={N + M}") == 0
    parts = FinishedRun(tmp_path / "parts")
    assert_same_runs(FinishedRun(tmp_path / "whole"), parts)
    assert parts.options["train_iters"] == N + M
    assert parts.log.count("iterations is short for a GAN") == 1, "hints are for new runs"
    assert len(json.loads((parts.folder / "environment.json").read_text())) == 2


def forget_moments(load):
    """Return a `load_state_dict` of an optimizer that loads zeros."""

    def load_zeros(self, state):
        load(self, state)
        for moments in self.state.values():
            for value in moments.values():
                value.zero_()

    return load_zeros


def forget_sums(load):
    """Return a `TrainingState.load` that does not load the running losses."""

    def load_without_sums(self, checkpoint):
        load(self, checkpoint)
        self.clear_losses()

    return load_without_sums


@pytest.mark.golden
@pytest.mark.parametrize("forgotten", ["random generator", "optimizer", "muon", "data order", "sums"])
def test_a_forgotten_part_is_noticed(forgotten, photos, tmp_path, monkeypatch):
    """Controls: a resumed run that forgets one part of the state has another result."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--use_diffaug", *CADENCE]
    flags += ["--d_optimizer=muon"] if forgotten == "muon" else []
    assert train(*flags, "--name=whole", f"--train_iters={N + M}") == 0
    assert train(*flags, "--name=parts", f"--train_iters={N}") == 0
    if forgotten == "random generator":
        monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    elif forgotten == "optimizer":
        monkeypatch.setattr(EagerAdam, "load_state_dict", forget_moments(EagerAdam.load_state_dict))
    elif forgotten == "muon":
        monkeypatch.setattr(Muon, "load_state_dict", forget_moments(Muon.load_state_dict))
    elif forgotten == "data order":
        real = data_loader.ImageBatches.indices
        monkeypatch.setattr(data_loader.ImageBatches, "indices", lambda self, step: real(self, step - N))
    else:
        monkeypatch.setattr(TrainingState, "load", forget_sums(TrainingState.load))
    assert resume(f"--resume={tmp_path / 'parts'}", f"--train_iters={N + M}") == 0
    with pytest.raises(AssertionError):
        assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_a_forgotten_pool_is_noticed(domains, tmp_path, monkeypatch):
    flags = [f"--data={domains}", f"--checkpoint_dir={tmp_path}", "--pool_size=8", *CADENCE]
    assert train(*flags, "--name=whole", f"--train_iters={N + M}", script="cycle_gan.py") == 0
    assert train(*flags, "--name=parts", f"--train_iters={N}", script="cycle_gan.py") == 0
    monkeypatch.setattr(layers.image_pool.ImagePool, "load_state_dict", lambda self, state: None)
    assert resume(f"--resume={tmp_path / 'parts'}", f"--train_iters={N + M}", script="cycle_gan.py") == 0
    with pytest.raises(AssertionError):
        assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_a_run_that_has_reached_its_length(photos, tmp_path, capsys):
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=x", "--train_iters=2") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    for length in ([], ["--train_iters=1"]):
        assert resume("--resume=x", f"--checkpoint_dir={tmp_path}", "--sample_every=1", *length) == 0
        out = capsys.readouterr().out
        assert "has already reached iteration 2; use a larger --train_iters to continue" in out
    assert {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()} == before


def test_a_finished_run_records_where_its_images_are_now(domains, tmp_path, capsys):
    """Only one of two folders was moved, and the flag has a relative path; nothing else in the run changes."""
    common = [f"--checkpoint_dir={tmp_path}", "--name=x", "--train_iters=2"]
    flags = [f"--X={domains / 'trainA'}", f"--Y={domains / 'trainB'}", *common]
    assert train(*flags, script="cycle_gan.py") == 0
    run = tmp_path / "x"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (domains / "trainA").rename(tmp_path / "moved")
    assert resume(f"--resume={run}", script="cycle_gan.py") == 2
    assert re.search(r"--X: the folder \S+ does not exist", capsys.readouterr().err)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert resume(f"--resume={run}", "--X=moved", "--sample_every=1", script="cycle_gan.py") == 0
    out = capsys.readouterr().out
    assert "has already reached iteration 2" in out
    assert f"options.json now says where the images are: --X {tmp_path / 'moved'}\n" in out
    found = FinishedRun(run)
    assert (found.options["X"], found.options["Y"]) == (str(tmp_path / "moved"), str(domains / "trainB"))
    assert found.options["sample_every"] == 200, "a run that has ended keeps its other options"
    assert (found.data["X"]["folder"], found.data["Y"]["folder"]) == (found.options["X"], found.options["Y"])
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"options.json", "data.json", "log.txt"}
    assert resume(f"--resume={run}", "--train_iters=3", script="cycle_gan.py") == 0, "the place is known now"


def test_other_images_are_not_recorded(domains, tmp_path, capsys):
    flags = [f"--data={domains / 'trainA'}", f"--checkpoint_dir={tmp_path}", "--name=x", "--train_iters=2"]
    assert train(*flags) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    for folder, words in (
        ("trainB", "are not those that the run began with: 3 missing"),
        ("nowhere", "nowhere does not exist"),
    ):
        assert resume(f"--resume={tmp_path / 'x'}", f"--data={domains / folder}") == 2
        assert words in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()} == before


@pytest.mark.golden
@pytest.mark.parametrize("script", MODULES)
def test_images_that_were_added_do_not_change_a_resumed_run(script, images_of, tmp_path, capsys, monkeypatch):
    """With images held out, evaluations, and an image that was skipped. Control: the split is drawn again."""
    folder = images_of[script]
    trained = folder if script == "vanilla_gan.py" else folder / "trainA"
    (trained / "bad.png").write_text("not an image")
    flags = [f"--data={folder}", f"--checkpoint_dir={tmp_path}", "--test_split=0.3", "--eval_every=100", "--log_step=3"]
    assert train(*flags, "--name=whole", f"--train_iters={N + M}", script=script) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, N, signal.SIGTERM, script)
        assert train(*flags, "--name=parts", f"--train_iters={N + M}", script=script) == 128 + signal.SIGTERM
    shutil.copytree(tmp_path / "parts", tmp_path / "control")
    record = (tmp_path / "parts" / "data.json").read_bytes()
    for i in range(3):
        make_photo((40, 40), 70 + i).save(trained / f"4{i}.png")
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'parts'}", script=script) == 0
    assert "Images added since the run began, which are not used: 3\n" in capsys.readouterr().out
    assert (tmp_path / "parts" / "data.json").read_bytes() == record
    whole = FinishedRun(tmp_path / "whole")
    assert_same_runs(whole, FinishedRun(tmp_path / "parts"))
    assert (whole.folder / "metrics.csv").read_bytes() == (tmp_path / "parts" / "metrics.csv").read_bytes()
    (tmp_path / "control" / "data.json").unlink()  # as a run of an early version
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'control'}", script=script) == 0
    assert "data.json is missing, so the run now has the images that its folders hold today" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        assert_same_runs(whole, FinishedRun(tmp_path / "control"))


@pytest.mark.parametrize("policy", ["linear", "cosine"])
def test_a_longer_run_says_what_happens_to_the_learning_rate(policy, photos, tmp_path, capsys):
    """Before training; the rates are those in losses.csv. A finished run offers a new run instead."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=x", "--log_step=1", f"--lr_policy={policy}"]
    assert train(*flags, "--train_iters=4") == 0
    assert "--train_iters" not in capsys.readouterr().out.split("Finished")[1]
    run = FinishedRun(tmp_path / "x")
    assert f"vanilla_gan.py --init_from {run.folder} ..." in run.log.splitlines()[-1]
    assert resume(f"--resume={run.folder}") == 0
    already = capsys.readouterr().out
    assert "which raises the learning rate again, or start a new run with --init_from" in already
    assert resume(f"--resume={run.folder}", "--train_iters=8") == 0
    out = capsys.readouterr().out
    last, following = (float(row["lr"]) for row in FinishedRun(run.folder).rows()[3:5])
    assert last < following
    expected = f"so with --lr_policy {policy} the learning rate changes from {last:.3g} to {following:.3g} now"
    assert f"Warning: The length changed from 4 to 8 iterations, {expected}" in out
    assert out.index("--init_from") < out.index("Training to iteration 8")


def test_a_run_that_keeps_its_length_or_its_rate_has_no_note(photos, tmp_path, capsys, monkeypatch):
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        assert train(*flags, "--name=x", "--lr_policy=linear", "--num_epochs=2") == 128 + signal.SIGTERM
    assert resume(f"--resume={tmp_path / 'x'}") == 0
    assert train(*flags, "--name=y", "--train_iters=2") == 0
    assert resume(f"--resume={tmp_path / 'y'}", "--train_iters=4") == 0
    out = capsys.readouterr().out
    assert "The length changed" not in out
    assert f"--resume {tmp_path / 'y'} --train_iters 8" in out, "the closing line of a run with a constant rate"


def test_a_run_that_was_stopped_gets_another_length(photos, tmp_path, capsys, monkeypatch):
    """In epochs, shorter: 10 images in batches of 4 for 4 epochs are 10 iterations, for 2 epochs 5."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=x", "--lr_policy=linear", "--num_epochs=4"]
    with monkeypatch.context() as patch:
        stop_at(patch, 4, signal.SIGTERM)
        assert train(*flags) == 128 + signal.SIGTERM
    assert resume(f"--resume={tmp_path / 'x'}", "--num_epochs=2") == 0
    expected = "The length changed from 10 to 5 iterations, so with --lr_policy linear the learning rate changes from"
    assert f"{expected} 0.0005 to 0.0002 now" in capsys.readouterr().out


def test_a_signal_in_the_last_iteration(photos, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=x", "--train_iters=2") == 0
    assert "Finished 2 iterations" in capsys.readouterr().out


@pytest.mark.faults
def test_killed_before_the_first_checkpoint(photos, tmp_path, monkeypatch):
    """The run starts from the beginning in its folder, and equals an uninterrupted one."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=3", "--log_step=1"]
    assert train(*flags, "--name=whole") == 0

    def crash(*args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(runs.folder.Run, "save_checkpoint", crash)
        with pytest.raises(RuntimeError, match="killed"):
            train(*flags, "--name=parts")
    assert resume(f"--resume={tmp_path / 'parts'}") == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))
    assert "parts has no checkpoint yet, so the run starts from the beginning" in FinishedRun(tmp_path / "parts").log


@pytest.mark.faults
def test_stopped_before_the_first_iteration(photos, tmp_path, monkeypatch):
    """A signal while the first grids are drawn: the run can be resumed, and equals an uninterrupted one."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=2", "--log_step=1"]
    assert train(*flags, "--name=whole") == 0
    with monkeypatch.context() as patch:
        real = vanilla_gan.draw_samples
        patch.setattr(
            vanilla_gan, "draw_samples", lambda *a: signal.raise_signal(signal.SIGINT) or real(*a)
        )  # fmt: skip
        assert train(*flags, "--name=parts") == 130
    assert FinishedRun(tmp_path / "parts").steps("checkpoint-*.pt") == [0]
    assert resume(f"--resume={tmp_path / 'parts'}") == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def write_format_1(path, content) -> None:
    """Write a checkpoint as the first versions did: without pools and warnings."""
    content = {key: value for key, value in content.items() if key not in ("pools", "warned", "counts")}
    torch.save({**content, "format": 1, "summed": 2}, path)


def write_format_2(path, content) -> None:
    """Write a checkpoint as earlier versions did: with its SHA-256 as the comment of the zip archive."""
    content = {key: value for key, value in content.items() if key != "counts"}
    file = io.BytesIO()
    torch.save({**content, "format": 2, "summed": 2}, file)
    data = file.getvalue()[:-2] + (64).to_bytes(2, "little")  # the length of the comment ends the archive
    path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())


@pytest.mark.parametrize("write", [write_format_1, write_format_2])
def test_checkpoints_of_earlier_versions(write, photos, tmp_path):
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=3"]
    assert train(*flags, "--name=whole", "--train_iters=6") == 0
    assert train(*flags, "--name=parts", "--train_iters=2") == 0
    path = tmp_path / "parts" / "checkpoint-000002.pt"
    content = torch.load(path, weights_only=True)
    assert content["format"] == 3 and set(content["counts"].values()) == {2}
    write(path, content)
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=6") == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_a_run_on_a_folder_with_any_name(photos, tmp_path, capsys):
    """The default name of a run contains it, and messages print it."""
    folder = photos.rename(tmp_path / "my\\c\na\x1b[31mts \udcff")
    assert train(f"--data={folder}", f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=2") == 0
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert resume(f"--resume={run}", "--train_iters=4") == 0
    assert FinishedRun(run).steps("checkpoint-*.pt")[-1] == 4
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err + (run / "log.txt").read_text() and "\\x1b" in out


def test_a_resumed_run_has_the_same_rows(photos, tmp_path, monkeypatch):
    """Warnings depend on the rows: they have the digits of losses.csv in an uninterrupted run, too."""
    seen = []
    monkeypatch.setattr(vanilla_gan, "diagnose_dcgan", lambda state, options, rows: seen.append(list(rows)) or {})
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--name=run"]
    assert train(*flags, "--train_iters=3") == 0
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    assert seen[1][:3] == seen[0]

"""N iterations, a stop, and M more equal N + M iterations bit for bit."""

import json
import signal

import pytest
import torch

import data_loader
import models
import runs
import trainer
import vanilla_gan
from tests.conftest import MODULES, FinishedRun, assert_same, resume, train

N, M = 5, 4  # the stop is on no multiple of log_step, sample_every or checkpoint_every

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
        "bf16": ["--amp=bf16", "--lr_policy=cosine", "--gan_mode=vanilla"],
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
            "--use_cycle_consistency_loss",
        ],
    },
}  # fmt: skip
BOTH = [(script, case) for script, cases in CASES.items() for case in cases]


def stop_at(monkeypatch, step: int, number: signal.Signals, script: str = "vanilla_gan.py") -> None:
    """Have a signal arrive in the middle of an iteration."""
    real = MODULES[script].train_step

    def train_step(state, batch, options):
        losses = real(state, batch, options)
        if state.step == step - 1:
            signal.raise_signal(number)
        return losses

    monkeypatch.setattr(MODULES[script], "train_step", train_step)


def assert_same_runs(a: FinishedRun, b: FinishedRun) -> None:
    """Assert that the final states, the losses and all grids that both have are equal to the last bit."""
    one, other = a.checkpoint(), b.checkpoint()
    for part in one:
        if part != "options":
            assert_same(one[part], other[part], part)
    assert (a.folder / "losses.csv").read_bytes() == (b.folder / "losses.csv").read_bytes()
    names = {path.name for path in (a.folder / "samples").iterdir()}
    assert names <= {path.name for path in (b.folder / "samples").iterdir()}
    for name in names:
        assert (a.folder / "samples" / name).read_bytes() == (b.folder / "samples" / name).read_bytes(), name


@pytest.mark.parametrize("script, case", BOTH)
def test_stopped_by_a_signal(script, case, images_of, tmp_path, monkeypatch):
    flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", f"--train_iters={N + M}", *CADENCE]
    flags += CASES[script][case]
    assert train(*flags, "--name=whole", script=script) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, N, signal.SIGTERM, script)
        assert train(*flags, "--name=parts", script=script) == 128 + signal.SIGTERM
    parts = FinishedRun(tmp_path / "parts")
    assert parts.steps("checkpoint-*.pt") == [4, N], "the iteration was finished and saved"
    assert f"{script} --resume {tmp_path / 'parts'}" in parts.log
    torch.manual_seed(999)  # whatever this process drew since must not matter
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


def test_lengthened(photos, tmp_path):
    """A run that ended goes on with a larger --train_iters, named by --name or by its folder."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", *CADENCE]
    assert train(*flags, "--name=whole", f"--train_iters={N + M}") == 0
    assert train(*flags, "--name=parts", f"--train_iters={N}") == 0
    assert resume("--resume", "--name=parts", f"--checkpoint_dir={tmp_path}", f"--train_iters={N + M}") == 0
    parts = FinishedRun(tmp_path / "parts")
    assert_same_runs(FinishedRun(tmp_path / "whole"), parts)
    assert parts.options["train_iters"] == N + M
    assert parts.log.count("iterations are few") == 1, "advice is for the start"
    assert len(json.loads((parts.folder / "environment.json").read_text())) == 2


@pytest.mark.parametrize("forgotten", ["random generator", "optimizer", "data order", "sums"])
def test_the_comparison_would_notice(forgotten, photos, tmp_path, monkeypatch):
    """Controls: a resumption that forgets one part of the state ends elsewhere."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--use_diffaug", *CADENCE]
    assert train(*flags, "--name=whole", f"--train_iters={N + M}") == 0
    assert train(*flags, "--name=parts", f"--train_iters={N}") == 0
    if forgotten == "random generator":
        monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    elif forgotten == "optimizer":
        monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    elif forgotten == "data order":
        real = data_loader.ImageBatches.indices
        monkeypatch.setattr(data_loader.ImageBatches, "indices", lambda self, step: real(self, step - N))
    else:
        monkeypatch.setattr("trainer.State.load", forget_sums(trainer.State.load))
    assert resume(f"--resume={tmp_path / 'parts'}", f"--train_iters={N + M}") == 0
    with pytest.raises(AssertionError):
        assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_a_forgotten_pool_would_be_noticed(domains, tmp_path, monkeypatch):
    flags = [f"--data={domains}", f"--checkpoint_dir={tmp_path}", "--pool_size=8", *CADENCE]
    assert train(*flags, "--name=whole", f"--train_iters={N + M}", script="cycle_gan.py") == 0
    assert train(*flags, "--name=parts", f"--train_iters={N}", script="cycle_gan.py") == 0
    monkeypatch.setattr(models.ImagePool, "load_state_dict", lambda self, state: None)
    assert resume(f"--resume={tmp_path / 'parts'}", f"--train_iters={N + M}", script="cycle_gan.py") == 0
    with pytest.raises(AssertionError):
        assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def forget_sums(load):
    def load_without_sums(self, checkpoint):
        load(self, checkpoint)
        self.sums, self.summed = None, 0

    return load_without_sums


def test_nothing_to_do(photos, tmp_path, capsys):
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=x", "--train_iters=2") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    for length in ([], ["--train_iters=1"]):
        assert resume("--resume=x", f"--checkpoint_dir={tmp_path}", "--sample_every=1", *length) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()} == before


def test_stop_after_the_last_iteration_is_a_finish(photos, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=x", "--train_iters=2") == 0
    assert "Finished 2 iterations" in capsys.readouterr().out


def test_killed_before_the_first_checkpoint(photos, tmp_path, monkeypatch):
    """Nothing was saved, so the run starts over in its folder, and equals one that was not killed."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=3", "--log_step=1"]
    assert train(*flags, "--name=whole") == 0

    def crash(*args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save_checkpoint", crash)
        with pytest.raises(RuntimeError, match="killed"):
            train(*flags, "--name=parts")
    assert resume(f"--resume={tmp_path / 'parts'}") == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_stop_before_the_first_iteration(photos, tmp_path, monkeypatch):
    """A signal while the first grids are drawn leaves a run that can be resumed, and equals one that never stopped."""
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


def test_a_run_of_the_first_version_goes_on(photos, tmp_path):
    """Its data.json knew no domains, and its checkpoints neither pools nor warnings."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1"]
    assert train(*flags, "--name=whole", "--train_iters=3") == 0
    assert train(*flags, "--name=parts", "--train_iters=2") == 0
    path = tmp_path / "parts" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text())["images"]))
    path = tmp_path / "parts" / "checkpoint-000002.pt"
    content = torch.load(path, weights_only=True)
    content["format"] = 1  # without a digest
    torch.save({key: value for key, value in content.items() if key not in ("pools", "warned")}, path)
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=3") == 0
    assert_same_runs(FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts"))


def test_a_run_on_a_folder_of_any_name_goes_on(photos, tmp_path, capsys):
    """The default name of a run is made of it, and what is printed names it."""
    folder = photos.rename(tmp_path / "my\\c\na\x1b[31mts \udcff")
    assert train(f"--data={folder}", f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=2") == 0
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert resume(f"--resume={run}", "--train_iters=4") == 0
    assert FinishedRun(run).steps("checkpoint-*.pt")[-1] == 4
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err + (run / "log.txt").read_text() and "\\x1b" in out


def test_a_resumed_run_has_the_same_rows(photos, tmp_path, monkeypatch):
    """What warnings are made of is what losses.csv says, to the last digit, whether it was read or not."""
    seen = []
    monkeypatch.setattr(vanilla_gan, "find_trouble", lambda state, options, rows: seen.append(list(rows)) or {})
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--name=run"]
    assert train(*flags, "--train_iters=3") == 0
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    assert seen[1][:3] == seen[0]

"""--init_from: a new run starts with the weights of another one, and with nothing else of it."""

import shutil

import pytest
import torch

from runs.checkpoints import write_checkpoint
from tests.conftest import TINY, FinishedRun, assert_same, make_domains, make_photos, resume, train

FROZEN = "--lr=1e-30"  # too small to change a weight

# Script -> options that give every kind of buffer, and another form of each network with the flags that name it.
NETWORKS = {
    "vanilla_gan.py": ["--spectral_norm", "--norm=batch"],
    "cycle_gan.py": ["--spectral_norm", "--disc=patch", "--pool_size=4"],
}
DRAWN = {
    "vanilla_gan.py": ["sample-{:06d}.png"],
    "cycle_gan.py": ["sample-{:06d}-X-Y.png", "sample-{:06d}-Y-X.png"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images and, for each script, a run `old-SCRIPT` of three iterations, with a large difference of its average."""
    folder = tmp_path_factory.mktemp("initial")
    make_domains(folder / "cycle_gan.py")
    make_photos(folder / "vanilla_gan.py")
    for script, flags in NETWORKS.items():
        assert start(folder, script, f"old-{script}", *flags, "--train_iters=3", "--lr=0.01", "--seed=3") == 0
    return folder


def start(folder, script: str, name: str, *flags: str) -> int:
    """Start a run on the images of a script; return the exit code."""
    common = [f"--data={folder / script}", f"--checkpoint_dir={folder}", f"--name={name}", "--train_iters=1"]
    return train(*common, *flags, script=script)


def old(folder, script: str) -> FinishedRun:
    return FinishedRun(folder / f"old-{script}")


@pytest.mark.golden
@pytest.mark.parametrize("script", NETWORKS)
def test_networks_averages_and_buffers_are_taken(script, folder):
    """Bit for bit; the first grid shows what the old run drew last. The rest is new: step, moments, noise, pools.

    The wrong variants: the old average as weights, and a run without --init_from.
    """
    flags = [*NETWORKS[script], FROZEN, "--ema_decay=0.5", "--seed=3"]  # the latents of the grid follow from the seed
    before = old(folder, script)
    assert start(folder, script, f"new-{script}", *flags, f"--init_from={before.folder}") == 0
    new = FinishedRun(folder / f"new-{script}")
    for name in DRAWN[script]:
        last, first = before.folder / "samples" / name.format(3), new.folder / "samples" / name.format(0)
        assert first.read_bytes() == last.read_bytes()
    had, has = before.checkpoint(3), new.checkpoint(1)
    assert has["networks"].keys() == had["networks"].keys() and has["step"] == 1
    for name, weights in had["networks"].items():
        for key, value in weights.items():
            if not key.endswith(("_u", "_v", "running_mean", "running_var", "num_batches_tracked")):
                assert torch.equal(has["networks"][name][key], value), (name, key)
            elif key.endswith("num_batches_tracked"):
                assert has["networks"][name][key] > value, "the statistics continue"
    G = next(iter(had["ema"]))
    assert any(not torch.equal(had["ema"][G][key], value) for key, value in had["networks"][G].items()), "the control"
    first = next(iter(has["optimizers"]["G"]["state"].values()))
    assert first["step"] == 1 and has["options"]["init_from"] == str(before.folder.resolve())
    assert "Weights of " in new.log and f"from {before.folder}, iteration 3" in new.log

    assert start(folder, script, f"without-{script}", *flags) == 0
    one, other = (FinishedRun(folder / name).checkpoint(1) for name in (f"without-{script}", f"new-{script}"))
    assert not torch.equal(*(next(iter(run["networks"][G].values())) for run in (one, other))), "the control"
    drawn = [FinishedRun(folder / name).folder / "samples" for name in (f"without-{script}", f"old-{script}")]
    name = DRAWN[script][0]
    assert (drawn[0] / name.format(0)).read_bytes() != (drawn[1] / name.format(3)).read_bytes(), "the control"


def test_without_an_average_the_old_weights_are_the_average(folder):
    """An old run with --ema_decay 0; and a new one with --ema_decay 0, which takes the raw weights."""
    script = "vanilla_gan.py"
    assert start(folder, script, "raw", "--ema_decay=0", "--train_iters=2", "--lr=0.01") == 0
    assert start(folder, script, "averaged", FROZEN, f"--init_from={folder / 'raw'}") == 0
    weights = FinishedRun(folder / "raw").checkpoint(2)["networks"]["G"]
    assert_same(dict(FinishedRun(folder / "averaged").checkpoint(1)["ema"]["G"]), dict(weights))
    flags = [*NETWORKS[script], FROZEN, "--ema_decay=0", "--norm=batch"]
    assert start(folder, script, "again", *flags, f"--init_from={folder / 'old-vanilla_gan.py'}") == 0
    had, has = (FinishedRun(folder / name).checkpoint() for name in ("old-vanilla_gan.py", "again"))
    key = "layers.1.0.weight"
    assert torch.equal(has["networks"]["G"][key], had["networks"]["G"][key])
    assert not torch.equal(has["networks"]["G"][key], had["ema"]["G"][key])


@pytest.mark.parametrize(
    "script, flags, words, taken",
    [
        (
            "vanilla_gan.py",
            ["--norm=instance", "--spectral_norm"],
            ["G layers.0.1.weight exists only there", "That run has --norm batch: use the same"],
            ("G", "layers.0.0.weight"),
        ),
        (
            "vanilla_gan.py",
            ["--norm=batch"],
            ["D layers.0.0.weight exists only here", "That run has --spectral_norm:"],
            ("G", "layers.0.1.weight"),
        ),
        (
            "vanilla_gan.py",
            [*NETWORKS["vanilla_gan.py"], "--noise_size=5"],
            ["G layers.0.0.weight 8x7x4x4 there, 8x5x4x4 here. That run has --noise_size 7:"],
            ("G", "layers.1.0.weight"),
        ),
        (
            "vanilla_gan.py",
            [*NETWORKS["vanilla_gan.py"], "--image_size=64"],
            ["G layers.0.0.weight 8x7x4x4 there, 16x7x4x4 here", "That run has --image_size 32:"],
            ("D", "layers.0.0.parametrizations.weight.original"),
        ),
        (
            "vanilla_gan.py",
            [*NETWORKS["vanilla_gan.py"], "--upsample=deconv"],
            ["G layers.1.0.weight 4x8x3x3 there, 8x4x4x4 here", "That run has --upsample nearest:"],
            ("G", "layers.0.0.weight"),
        ),
        (
            "cycle_gan.py",
            ["--spectral_norm", "--disc=patch70"],
            ["D_X layers.3", "That run has --disc patch:"],
            ("D_Y", "layers.1.0.parametrizations.weight.original"),
        ),
        (
            "cycle_gan.py",
            ["--disc=patch"],
            ["D_X layers.0.0.weight exists only here", "That run has --spectral_norm:"],
            ("G_YtoX", "layers.0.0.weight"),
        ),
        (
            "cycle_gan.py",
            [*NETWORKS["cycle_gan.py"], "--n_res_blocks=4"],
            ["G_XtoY layers.5.layers.0.0.weight exists only here", "That run has no --n_res_blocks:"],
            ("G_YtoX", "layers.4.layers.0.0.weight"),
        ),
        (
            "cycle_gan.py",
            [*NETWORKS["cycle_gan.py"], "--n_res_blocks=16"],
            ["G_XtoY layers.5.layers.0.0.weight exists only here", "; and 31 more. That run has no --n_res_blocks:"],
            ("G_YtoX", "layers.4.layers.0.0.weight"),
        ),
    ],
)
def test_other_networks_need_partial(script, flags, words, taken, folder, capsys):
    """One line, and no folder; with --partial the layers that fit are taken, and the others are logged."""
    source = f"--init_from={folder / f'old-{script}'}"
    capsys.readouterr()
    assert start(folder, script, "partial", *flags, source) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not [word for word in [*words, "add --partial"] if word not in err], err
    assert len(err) < 800 and not (folder / "partial").exists()
    try:
        assert start(folder, script, "partial", *flags, source, "--partial", FROZEN) == 0
        new, before = FinishedRun(folder / "partial"), old(folder, script)
        [listed] = [line for line in new.log.splitlines() if line.startswith("Not taken, because of other shapes or ")]
        assert " more" not in listed, "all are listed"
        had, has = (run.checkpoint()["networks"][taken[0]][taken[1]] for run in (before, new))
        assert torch.equal(had, has)
    finally:
        shutil.rmtree(folder / "partial", ignore_errors=True)


def test_a_checkpoint_file_and_the_best_one(folder):
    """Checkpoints of other iterations are given as files."""
    script = "vanilla_gan.py"
    flags = [*NETWORKS[script], f"--init_from={folder / 'old-vanilla_gan.py' / 'checkpoint-000003.pt'}"]
    assert start(folder, script, "from-file", *flags, FROZEN) == 0
    assert FinishedRun(folder / "from-file").options["init_from"].endswith("old-vanilla_gan.py/checkpoint-000003.pt")


def test_a_resumed_run_does_not_read_the_old_one_again(folder, tmp_path, monkeypatch):
    """The old run is deleted; the path is relative, and the same command with --resume is accepted."""
    script = "vanilla_gan.py"
    shutil.copytree(folder / "old-vanilla_gan.py", tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    assert start(folder, script, "whole", *NETWORKS[script], "--init_from=old", "--train_iters=2") == 0
    assert start(folder, script, "stopped", *NETWORKS[script], "--init_from=old") == 0
    assert resume(f"--resume={folder / 'stopped'}", "--train_iters=2", "--init_from=old") == 0
    shutil.rmtree(tmp_path / "old")
    assert resume(f"--resume={folder / 'stopped'}", "--train_iters=3") == 0
    assert_same(FinishedRun(folder / "whole").checkpoint(2)["networks"],
                FinishedRun(folder / "stopped").checkpoint(2)["networks"])  # fmt: skip


def test_a_run_that_was_stopped_before_its_first_checkpoint_reads_the_old_one_again(folder, tmp_path, capsys):
    """Otherwise the run would train from new weights, without a word."""
    script = "vanilla_gan.py"
    shutil.copytree(folder / "old-vanilla_gan.py", tmp_path / "old")
    flags = [*NETWORKS[script], f"--init_from={tmp_path / 'old'}"]
    for name in ("lost", "kept"):
        assert start(folder, script, name, *flags) == 0
    (folder / "lost" / "checkpoint-000001.pt").unlink()
    assert resume(f"--resume={folder / 'lost'}") == 0
    assert_same(*(FinishedRun(folder / name).checkpoint(1)["networks"] for name in ("lost", "kept")))
    (folder / "lost" / "checkpoint-000001.pt").unlink()
    shutil.rmtree(tmp_path / "old")
    capsys.readouterr()
    assert resume(f"--resume={folder / 'lost'}") == 2
    assert f"--init_from: {tmp_path / 'old'} does not exist" in capsys.readouterr().err


@pytest.mark.faults
@pytest.mark.parametrize(
    "where, words",
    [
        ("nowhere", "nowhere does not exist; give a run folder or a checkpoint"),
        ("cycle_gan.py", "contains no readable checkpoint"),
        ("vanilla_gan.py/0.png", "is not a readable checkpoint (it is a PNG image)"),
        ("old-cycle_gan.py", "is a run of cycle_gan.py; give a run of vanilla_gan.py"),
        ("x" * 300, "File name too long"),
        ("broken", "contains values that are not finite"),
        ("empty", "is not complete (no 'networks')"),
        ("none", "no layer of"),
    ],
)
def test_mistakes(where, words, folder, capsys):
    """One line each, and no run folder, although --partial is given."""
    content = old(folder, "vanilla_gan.py").checkpoint()
    broken = {**content, "ema": {"G": {key: value * float("nan") for key, value in content["ema"]["G"].items()}}}
    none = {**content, "networks": {"E": content["networks"]["G"]}, "ema": {}}
    for name, edited in {"broken": broken, "none": none, "empty": {"script": "vanilla_gan.py", "step": 1}}.items():
        (folder / name).mkdir(exist_ok=True)
        write_checkpoint(folder / name / f"checkpoint-{edited['step']:06d}.pt", edited)
    capsys.readouterr()
    flags = [*NETWORKS["vanilla_gan.py"], f"--init_from={folder / where}", "--partial"]
    assert start(folder, "vanilla_gan.py", "mistake", *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--init_from: " in err and words in err, err
    assert not (folder / "mistake").exists()


def test_partial_needs_a_run(folder, capsys):
    assert start(folder, "vanilla_gan.py", "mistake", "--partial") == 2
    assert "--partial: does nothing without --init_from; add that flag" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--self_modulation"]])
def test_plain_and_self_modulated_stages_fit_each_other(folder, flags):
    """Only the modulation itself is new, or is left out."""
    other = [] if flags else ["--self_modulation"]
    assert start(folder, "vanilla_gan.py", f"from{flags}", *flags, "--seed=4") == 0
    source = f"--init_from={folder / f'from{flags}'}"
    assert start(folder, "vanilla_gan.py", f"to{flags}", *other, source, "--partial", FROZEN) == 0
    before, after = (FinishedRun(folder / f"{name}{flags}").checkpoint()["networks"]["G"] for name in ("from", "to"))
    taken = [key for key in before if "modulation" not in key]
    names = {key.replace(".stage.", "."): key for key in after}
    assert len(taken) == 5, "four kernels and a bias"
    for key in taken:
        assert_same(before[key], after[names[key.replace(".stage.", ".")]])


def test_a_network_without_a_fitting_kernel_is_new(folder, capsys):
    """A bias that happens to have the same shape is not taken alone: its kernel is new."""
    flags = [*NETWORKS["vanilla_gan.py"], f"--init_from={folder / 'old-vanilla_gan.py'}", "--partial"]
    assert start(folder, "vanilla_gan.py", "mistake", *flags, "--conv_dim=3") == 2
    assert "no layer of" in capsys.readouterr().err
    assert start(folder, "vanilla_gan.py", "new-D", *flags, "--norm=none", FROZEN) == 0


def test_a_fixed_option_is_changed_by_a_new_run(folder, capsys):
    """The message that refuses another learning rate on resume says how; the way works, also with a preset."""
    script = "vanilla_gan.py"
    run = folder / "old-vanilla_gan.py"
    assert resume(f"--resume={run}", "--train_iters=4", "--lr=1e-4") == 2
    err = capsys.readouterr().err
    remedy = "leave the flag out, or start a new run from its weights with --init_from RUN"
    assert f"--lr: this run has 0.01, the command says 0.0001; {remedy}" in err
    assert start(folder, script, "slower", *NETWORKS[script], f"--init_from={run}", "--lr=1e-4", "--preset=hasey",
                 "--upsample=nearest") == 0  # fmt: skip
    assert FinishedRun(folder / "slower").options["lr"] == 1e-4


def test_resume_of_a_file_names_both_ways(folder, capsys):
    """A checkpoint, and a file of another program."""
    checkpoint = folder / "old-vanilla_gan.py" / "checkpoint-000003.pt"
    for path, run in ((checkpoint, checkpoint.parent), (folder / "vanilla_gan.py" / "0.png", "checkpoints/NAME")):
        assert resume(*TINY["vanilla_gan.py"][:0], f"--resume={path}") == 2
        err = capsys.readouterr().err
        assert f"it is a file; --init_from starts a new run from a file); use a run such as {run}\n" in err


def test_a_run_can_be_given_without_its_parent(photos, tmp_path):
    """As for --resume: --init_from NAME is the run in --checkpoint_dir."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=1"]
    assert train(*flags, "--name=old") == 0
    assert train(*flags, "--name=new", "--init_from=old") == 0
    assert FinishedRun(tmp_path / "runs/new").options["init_from"] == str(tmp_path / "runs/old")

"""On a GPU: a run with CUDA graphs against one without. Skipped elsewhere."""

import pytest
import torch

from tests.conftest import FinishedRun, resume, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


# Name -> script and flags.
CASES = {
    "penalties": (
        "vanilla_gan.py",
        ["--data_aug=deluxe", "--use_diffaug", "--spectral_norm", "--r1_gamma=1", "--penalty_every=2"],
    ),
    "variety": (
        "vanilla_gan.py",
        [
            "--preset=few_images",
            "--noise_size=10",
            "--fine_channels=4",
            "--lambda_modes=0.1",
            "--lambda_features=0.1",
        ],
    ),
    "cyclegan": (
        "cycle_gan.py",
        [
            "--data_aug=deluxe",
            "--use_diffaug",
            "--pool_size=8",
            "--d_optimizer=muon",
            "--use_cycle_consistency_loss",
        ],
    ),
}


def run(case, images_of, folder, name, *flags) -> FinishedRun:
    script, flags_of_case = CASES[case]
    common = [f"--data={images_of[script]}", f"--checkpoint_dir={folder}", f"--name={name}", "--device=cuda"]
    common += [*flags_of_case, "--train_iters=40", "--log_step=5", "--lr=1e-5", "--lr_policy=linear"]
    assert train(*common, *flags, script=script) == 0
    return FinishedRun(folder / name)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_the_steps_do(case, images_of, tmp_path, monkeypatch, amp):
    graphed = run(case, images_of, tmp_path, "graph", f"--amp={amp}")
    assert "No CUDA graph" not in graphed.log
    monkeypatch.setattr("training.steps.graph_obstacle", lambda *args: "the test")
    eager = run(case, images_of, tmp_path, "eager", f"--amp={amp}")
    assert "No CUDA graph: the test" in eager.log
    tolerance = 1e-3 if amp == "off" else 3e-2
    for a, b in zip(graphed.rows(), eager.rows(), strict=True):
        for name in a:
            assert float(a[name] or 0) == pytest.approx(float(b[name] or 0), rel=tolerance, abs=tolerance), (
                a["step"],
                name,
            )
    assert torch.equal(graphed.checkpoint()["rng"]["cuda"], eager.checkpoint()["rng"]["cuda"]), "as many draws"


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact_with_deterministic(case, images_of, tmp_path):
    flags = ["--deterministic", "--lr_policy=constant"]
    whole = run(case, images_of, tmp_path, "whole", *flags)
    run(case, images_of, tmp_path, "parts", *flags, "--train_iters=20")
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=40", script=CASES[case][0]) == 0
    parts = FinishedRun(tmp_path / "parts")
    for network, weights in whole.checkpoint()["networks"].items():
        for name, value in weights.items():
            assert torch.equal(value, parts.checkpoint()["networks"][network][name]), (network, name)


def test_out_of_memory_is_one_line(photos, tmp_path, capsys):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        code = train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--device=cuda", "--batch_size=100000")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "requested" in error and "--batch_size" in error

"""On a GPU: a run with CUDA graphs against one without. Skipped elsewhere."""

import pytest
import torch

from tests.conftest import FinishedRun, resume, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


FLAGS = {
    "vanilla_gan.py": ["--data_aug=deluxe", "--use_diffaug", "--spectral_norm", "--r1_gamma=1", "--penalty_every=2"],
    "cycle_gan.py": [
        "--data_aug=deluxe",
        "--use_diffaug",
        "--pool_size=8",
        "--d_optimizer=muon",
        "--use_cycle_consistency_loss",
    ],
}


def run(script, images_of, folder, name, *flags) -> FinishedRun:
    common = [f"--data={images_of[script]}", f"--checkpoint_dir={folder}", f"--name={name}", "--device=cuda"]
    common += ["--train_iters=40", "--log_step=5", "--lr=1e-5", "--lr_policy=linear", *FLAGS[script]]
    assert train(*common, *flags, script=script) == 0
    return FinishedRun(folder / name)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("script", FLAGS)
def test_the_graph_computes_what_the_steps_do(script, images_of, tmp_path, monkeypatch, amp):
    graphed = run(script, images_of, tmp_path, "graph", f"--amp={amp}")
    assert "No CUDA graph" not in graphed.log
    monkeypatch.setattr("training.steps.graph_obstacle", lambda *args: "the test")
    eager = run(script, images_of, tmp_path, "eager", f"--amp={amp}")
    assert "No CUDA graph: the test" in eager.log
    tolerance = 1e-3 if amp == "off" else 3e-2
    for a, b in zip(graphed.rows(), eager.rows(), strict=True):
        for name in a:
            assert float(a[name] or 0) == pytest.approx(float(b[name] or 0), rel=tolerance, abs=tolerance), (
                a["step"],
                name,
            )
    assert torch.equal(graphed.checkpoint()["rng"]["cuda"], eager.checkpoint()["rng"]["cuda"]), "as many draws"


@pytest.mark.parametrize("script", FLAGS)
def test_resume_is_exact_with_deterministic(script, images_of, tmp_path):
    flags = ["--deterministic", "--lr_policy=constant"]
    whole = run(script, images_of, tmp_path, "whole", *flags)
    run(script, images_of, tmp_path, "parts", *flags, "--train_iters=20")
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=40", script=script) == 0
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

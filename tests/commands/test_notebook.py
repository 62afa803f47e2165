"""In a notebook and in IPython: docs/notebook.ipynb runs, and Ctrl-C does after a command what it did before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, FinishedRun

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook, folder: Path) -> list:
    """Execute the cells of a notebook that was opened in a folder; return their outputs."""
    nbclient.NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def find_errors(outputs: list) -> list:
    return [output for output in outputs if output.output_type == "error"]


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Kernels use this Python, also for `!python`, one thread, and a folder for their own files."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_the_notebook_runs_in_the_folder_docs(checkout, kernels):
    (checkout / "docs").mkdir(exist_ok=True)
    outputs = execute(read_notebook(), checkout / "docs")

    # Both models are trained, and all images are made.
    runs = checkout / "checkpoints" / "demo"
    assert FinishedRun(runs / "cats").steps("checkpoint-*.pt") == [50]
    assert FinishedRun(runs / "cyclegan").steps("checkpoint-*.pt") == [5]
    inputs = {path.name for path in (checkout / "data/toy_cats_32/testA").iterdir()}
    assert {path.name for path in (runs / "grumpy").iterdir()} == inputs and (runs / "samples.png").exists()

    # The notebook shows four pictures, the last one by its own matplotlib, and no command has failed or warned.
    assert not find_errors(outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    text = "".join(output.get("text", "") for output in outputs)
    assert "Finished 50 iterations" in text and "Finished 5 iterations" in text and "translated 50 of 50" in text
    assert "Warning" not in text and "Traceback" not in text, text


def test_the_notebook_finds_the_scripts_from_the_root_too(checkout, kernels):
    notebook = read_notebook()
    where = nbformat.v4.new_code_cell(f"print(os.path.samefile('.', {str(checkout)!r}))")
    notebook.cells = [notebook.cells[1], where]
    [output] = execute(notebook, checkout)
    assert output.text == "True\n"


def test_a_command_that_fails_is_seen(kernels, tmp_path):
    """The control: nbclient itself does not report a failed `%run`."""
    cell = nbformat.v4.new_code_cell(f"%run {ROOT / 'vanilla_gan.py'} --bogus")
    outputs = execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert len(find_errors(outputs)) == 1 and "--bogus" in outputs[0].text


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


IPYTHON = """
import signal
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for command in ("vanilla_gan.py --bogus", "cycle_gan.py --help", "evaluate.py", "generate.py nothing"):
    shell.run_line_magic("run", command)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("the session is alive")
"""


def test_ctrl_c_after_a_command_does_not_end_ipython(kernels):
    """After a mistake and after --help, which end the program while it reads its command line."""
    done = subprocess.run([sys.executable, "-c", IPYTHON], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("the session is alive\n"), done.stderr
    assert "--bogus" in done.stderr and "usage: cycle_gan.py" in done.stdout

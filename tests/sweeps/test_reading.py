"""The TOML file of a sweep: its settings and runs, mistakes in one line before anything starts, the shipped files."""

import json
import re
from pathlib import Path

import pytest

from options.training import CycleOptions, VanillaOptions
from sources.domains import find_domains
from sweeps.grid import Sweep, commands_of, parse_job
from sweeps.reading import check_images, read_sweep
from tests.conftest import ROOT, TINY, train
from utils import UserError

SMALL = "\n".join(flag.removeprefix("--").replace("=", " = ") for flag in TINY["vanilla_gan.py"])
SMALL = SMALL.replace("cpu", '"cpu"').replace("off", '"off"')
HEAD = f'script = "vanilla_gan.py"\n[base]\ntrain_iters = 2\n{SMALL}\n'


def write(folder: Path, text: str, name: str = "try.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(folder: Path, text: str, *arguments) -> Sweep:
    return read_sweep(write(folder, text), folder / "runs", *arguments)


def test_a_grid_has_all_combinations_with_all_seeds(tmp_path):
    text = f'name = "n"\nseeds = [3, 1]\n{HEAD}[grid]\nlr = [0.001, 2e-4]\nspectral_norm = [true, false]\n'
    sweep = read(tmp_path, text)
    assert sweep.folder == tmp_path / "runs" / "n" and sweep.evaluate == {} and not sweep.folder.exists()
    assert [case.label for case in sweep.cases] == [
        "lr=0.001, spectral_norm=true", "lr=0.001, spectral_norm=false",
        "lr=0.0002, spectral_norm=true", "lr=0.0002, spectral_norm=false",
    ]  # fmt: skip
    assert [(job.case, job.seed) for job in sweep.jobs] == [(case, seed) for case in sweep.cases for seed in (3, 1)]
    assert sweep.jobs[0].folder == sweep.folder / "lr=0.001-spectral_norm=true-3"
    options = [parse_job(sweep, job) for job in sweep.jobs]
    assert [one.lr for one in options] == [0.001] * 4 + [0.0002] * 4
    assert [one.spectral_norm for one in options] == [True, True, False, False] * 2
    assert [one.seed for one in options] == [3, 1] * 4 and {one.conv_dim for one in options} == {2}


def test_cases_have_labels_and_published_numbers(tmp_path):
    cases = '[[case]]\nlabel = "a / b"\nuse_diffaug = true\npublished = {FID = 55}\n[[case]]\nlabel = "plain"\n'
    sweep = read(tmp_path, HEAD + 'data = "x"\n' + cases + '[evaluate]\nfeatures = "pixels"\nseed = 4\n')
    first, second = sweep.jobs
    assert (sweep.name, sweep.seeds, first.folder.name) == ("try", [11], "a-b-11")
    assert first.case.published == {"FID": 55} and second.case.published == {}
    assert (
        parse_job(sweep, first).use_diffaug == "color,translation,cutout" and not parse_job(sweep, second).use_diffaug
    )
    assert commands_of(sweep, first)[1][1:] == [
        str(ROOT / "evaluate.py"), str(first.folder), "--features=pixels", "--seed=4", "--device=cpu",
    ]  # fmt: skip


def test_a_file_without_cases_trains_its_base_with_each_seed(tmp_path):
    sweep = read(tmp_path, f"\ufeffseeds = [1, 2]\n{HEAD}")  # with the BOM that editors on Windows add
    assert [job.folder.name for job in sweep.jobs] == ["try-1", "try-2"]


def test_aliases_and_long_labels(tmp_path):
    label = "x" * 200
    sweep = read(
        tmp_path, f'{HEAD}data_preprocess = "deluxe"\n[[case]]\nlabel = "{label}"\n[[case]]\nlabel = "{label}y"'
    )
    assert parse_job(sweep, sweep.jobs[0]).data_aug == "deluxe"
    names = {job.folder.name for job in sweep.jobs}
    assert len(names) == 2 and all(len(name) < 80 for name in names)


def test_options_of_the_command_line_replace_those_of_the_file(tmp_path):
    text = f'{HEAD}data = "a"\n[evaluate]\nfeatures = "inception"\n'
    sweep = read(tmp_path, text, {"data": "b", "train_iters": 7}, {"features": "pixels"})
    assert sweep.base["data"] == "b" and parse_job(sweep, sweep.jobs[0]).train_iters == 7
    assert sweep.evaluate == {"features": "pixels"}
    cycle = 'script = "cycle_gan.py"\n[base]\nX = "a"\nY = "b"\n'
    assert read(tmp_path, cycle, {"data": "c"}).base == {"data": "c"}
    assert read(tmp_path, HEAD, {"num_epochs": 3}).base.get("train_iters") is None


GRID, CASE = HEAD + "[grid]\n", HEAD + '[[case]]\nlabel = "a"\n'
MISTAKES = {
    "= 1": r"it is not TOML: .*; texts need quotes, true and false are lower case",
    "": r"script: missing",
    'script = "train.py"': r"script: 'train.py' is unknown; choose from vanilla_gan.py, cycle_gan.py",
    "script = [1]": r"script: \[1\] is unknown",
    HEAD.replace("[base]", "seed = 1\n[base]"): r"key 'seed' is unknown; did you mean seeds\?",
    HEAD.replace("[base]", 'data = "x"\n[base]'): r"the key 'data' is unknown; options belong under \[base\]; the keys",
    f"name = 3\n{HEAD}": r"name: 3 is not a text",
    f'name = "../x"\n{HEAD}': r"--name: '../x' is not a valid run name",
    f"seeds = []\n{HEAD}": r"seeds: \[\] is not a list of whole numbers",
    f"seeds = [1.5]\n{HEAD}": r"seeds: \[1.5\]",
    f"seeds = [true]\n{HEAD}": r"seeds: \[true\]",
    f"seeds = [1, 1]\n{HEAD}": r"a seed is given twice",
    f"seeds = [-1]\n{HEAD}": r"--seed: -1 is out of range",
    f"grid = 3\n{HEAD}": r"grid: 3 is not a table",
    HEAD + "batchsize = 4": r"\[base\]: the option 'batchsize' of vanilla_gan.py is unknown; did you mean batch_size\?",
    HEAD + "pool_size = 4": r"the option 'pool_size' of vanilla_gan.py is unknown; ",
    HEAD + "seed = 4": r"\[base\]: seed: the sweep itself sets this option; use the list seeds",
    HEAD + 'data_aug = "basic"\ndata_preprocess = "deluxe"': r"\[base\]: data_preprocess is another name of data_aug; ",
    HEAD + 'name = "x"': r"\[base\]: name: the sweep itself sets",
    HEAD + "lr = [1.0, 2.0]": r"\[base\]: lr: \[1.0, 2.0\] is not a value; .*; a list belongs in \[grid\]$",
    HEAD + 'lr = "fast"': r"\[base\]: argument --lr: invalid float value: 'fast'",
    HEAD + "lr = -1.0": r"\[base\]: --lr: -1.0 is out of range",
    HEAD + "use_diffaug = False": r"it is not TOML: .*; texts need quotes, true and false are lower case",
    HEAD + "use_diffaug = [false, true]": r"use_diffaug: \[false, true\] is not a value",
    HEAD + "penalty_every = 2\nr1_gamma = 1\n[[case]]\nlabel = 'a'\nr1_gamma = 0": r"case 'a': --penalty_every",
    HEAD + "lr = nan": r"--lr: nan is not a finite number",
    HEAD + "lr = true": r"argument --lr: expected one argument",
    HEAD + 'spectral_norm = "yes"': r"--spectral_norm",
    HEAD + 'disc = "patch70"': r"--disc: 'patch70' is unknown; choose from dc, patch",
    HEAD + 'preset = "list"': r"preset: 'list' is not a preset",
    HEAD + 'preset = "leoo"': r"--preset: 'leoo' is unknown",
    HEAD + "penalty_every = 4": r"--penalty_every: does nothing without",
    GRID: r"\[grid\] is empty",
    GRID + "lr = []": r"\[grid\] lr: \[\] is not a list of values",
    GRID + "lr = 0.1": r"\[grid\] lr: 0.1 is not a list of values",
    GRID + "spectral_norm = true": r"\[grid\] spectral_norm: true is not a list of values",
    GRID + "lrr = [0.1]": r"option 'lrr' of vanilla_gan.py is unknown; did you mean lr\?",
    GRID + "lr = [0.1, 0.1]": r"the label 'lr=0.1' is given twice",
    GRID + 'data_aug = ["basic"]\ndata_preprocess = ["deluxe"]': r"data_preprocess is another name of data_aug; leave",
    GRID + "lr = [[0.1]]": r"lr: \[0.1\] is not a value",
    GRID + "lr = [0.1, -1]": r"case 'lr=-1': --lr: -1.0 is out of range",
    CASE + "[grid]\nlr = [1]": r"\[grid\] and \[\[case\]\]; leave one of them out",
    CASE + '[[case]]\nlabel = "a"': r"the label 'a' is given twice",
    CASE + '[[case]]\nlabel = "A"': r"'a' and 'A' need the same folder",
    HEAD + "[[case]]\nlr = 0.1": r"\[\[case\]\] number 1: it has no label",
    CASE + "[[case]]\nlabel = 3": r"\[\[case\]\] number 2: it has no label",
    f"case = 3\n{HEAD}": r"case: it is not a list of tables",
    CASE + "lrr = 0.1": r"\[\[case\]\] 'a': the option 'lrr' .*did you mean lr\?",
    CASE + 'published = {"FID, X to Y" = 3}': (
        r"published: 'FID, X to Y' is not a metric of vanilla_gan.py; use such as 'FID'"
    ),
    CASE.replace("vanilla", "cycle").replace("conv_dim", "g_conv_dim").replace("noise_size = 7\n", "")
    + "published = {FID = 3}": r"published: 'FID' is not a metric of cycle_gan.py; use such as 'FID, X to Y'",
    CASE + "published = {FID = nan}": r"\[\[case\]\] 'a': published: it is not a table of numbers",
    CASE + 'published = {FID = "x"}': r"\[\[case\]\] 'a': published: it is not a table of numbers",
    HEAD
    + "[evaluate]\nfeature = 3": r"\[evaluate\]: the option 'feature' of evaluate.py is unknown; did you mean features",
    HEAD + "[evaluate]\nnum_images = 1": r"\[evaluate\]: --num_images: 1 is out of range",
    HEAD + '[evaluate]\nfeatures = "incepton"': r"features: the file incepton does not exist; choose",
    HEAD + '[evaluate]\nout = "x"': r"\[evaluate\]: out: the sweep itself sets",
    HEAD + '[evaluate]\nreference = "no"': r"\[evaluate\]: reference: no does not exist",
    HEAD + '[evaluate]\ncheckpoint = "bestt"': r"\[evaluate\]: checkpoint: 'bestt' is neither newest, best nor",
    HEAD + '[evaluate]\ncheckpoint = "best"': r"\[evaluate\]: checkpoint: 'best' needs eval_every in \[base\]",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line(text, tmp_path):
    with pytest.raises(UserError, match=MISTAKES[text]) as mistake:
        read(tmp_path, text)
    assert "\n" not in str(mistake.value) and str(mistake.value).startswith(str(tmp_path / "try.toml"))
    assert [path.name for path in tmp_path.iterdir()] == ["try.toml"]


def test_a_file_that_is_missing_or_binary(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_sweep(tmp_path / "no.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is not TOML"):
        read_sweep(tmp_path / "b.toml")


def test_an_option_that_differs_between_settings_cannot_be_set(tmp_path):
    with pytest.raises(UserError, match=r"--set: lr is overridden by the case 'lr=0.1'"):
        read(tmp_path, GRID + "lr = [0.1, 0.2]", {"lr": 0.3})
    with pytest.raises(UserError, match=r"--set: train_iters is overridden by the case 'a'"):
        read(tmp_path, CASE + "num_epochs = 3", {"train_iters": 5})  # --num_epochs of the case replaces the length
    with pytest.raises(UserError, match=r"^--set: the option 'trainiters' .*did you mean train_iters"):
        read(tmp_path, HEAD, {"trainiters": 5})
    with pytest.raises(UserError, match=r"^--set: --lr: -1.0 is out of range"):
        read(tmp_path, CASE, {"lr": -1.0})


def test_the_images_of_missing_runs_are_found_before_the_first_training(photos, tmp_path, monkeypatch):
    """Each folder is looked at once; the toy cats are drawn by the training that needs them."""
    looked = []

    def find(options: VanillaOptions) -> dict:
        looked.append(options.data)
        return find_domains(options)

    monkeypatch.setattr("sources.domains.find_domains", find)
    text = f'seeds = [1, 2]\n{HEAD}[grid]\ndata = ["{photos}", "no/such"]\nlr = [0.1, 0.2]\n'
    with pytest.raises(UserError, match=r"^data: the folder no/such does not exist"):
        check_images(read(tmp_path, text))
    assert looked == [str(photos), "no/such"]
    check_images(read(tmp_path, HEAD))
    monkeypatch.setattr("sources.folders.DATA_ROOT", tmp_path)
    with pytest.raises(UserError, match=r"^data of the preset grumpycat64: .*; or use --set data=FOLDER$"):
        check_images(read(tmp_path, HEAD, {"preset": "grumpycat64"}))
    sweep = read(tmp_path, text)
    monkeypatch.setattr("sweeps.reading.is_missing", lambda folder: "no-such" not in folder.name)
    check_images(sweep)
    assert looked[3:] == [str(photos)]


def test_a_run_with_other_options_stops_the_sweep_before_it_starts(photos, tmp_path):
    """Options that may change when a run is resumed are free; all others must be those of the file."""
    text = f'{HEAD}data = "{photos}"\nlog_step = 1\n'
    place = [f"--data={photos}", f"--checkpoint_dir={tmp_path / 'runs' / 'try'}", "--name=try-11"]
    assert train(*place, "--train_iters=2", "--log_step=1") == 0
    folder = tmp_path / "runs" / "try" / "try-11"
    assert read(tmp_path, text).jobs[0].folder == folder
    read(tmp_path, text, {"train_iters": 3, "checkpoint_every": 7})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for changes, message in {
        ("lr", 0.1): "lr: .* has 0.0005, the sweep says 0.1; move .*try-11 away",
        ("use_diffaug", True): "use_diffaug: .* has '', the sweep says 'color,translation,cutout'",
        ("spectral_norm", True): "spectral_norm: .* has false, the sweep says true",
        ("preset", "hasey"): "preset: .* has None, the sweep says 'hasey'",
        ("train_iters", 1): "has 2 iterations, the sweep says 1; use at least 2",
        ("value_range", "0,4"): "value_range: .* the sweep says '0,4'",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path, text, dict([changes]))
    cycle = f'script = "cycle_gan.py"\nname = "try"\n[[case]]\nlabel = "try"\ndata = "{photos}"\n'
    with pytest.raises(UserError, match=r"is a run of vanilla_gan.py, the sweep is one of cycle_gan.py"):
        read(tmp_path, cycle)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    saved = json.loads((folder / "options.json").read_text())
    saved["options"]["newer"] = 3
    (folder / "options.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="option 'newer' is unknown to this version"):
        read(tmp_path, text)
    (folder / "options.json").unlink()
    with pytest.raises(UserError, match="exists and is not a run folder"):
        read(tmp_path, text)


def test_the_images_of_a_run_may_have_values_of_their_own(photos, tmp_path):
    """A run records the --value_range that it found in its images; that is not another option."""
    folder = tmp_path / "runs" / "try" / "try-11"
    folder.mkdir(parents=True)
    text = f'{HEAD}data = "{photos}"\n'
    options = parse_job(read(tmp_path, text), read(tmp_path, text).jobs[0]).with_absolute_paths()
    content = {"script": "vanilla_gan.py", "options": {**options.to_dict(), "value_range": "0,4095"}}
    (folder / "options.json").write_text(json.dumps(content))
    assert read(tmp_path, text)
    with pytest.raises(UserError, match=r"value_range: .* has '0,4095', the sweep says '0,1000'"):
        read(tmp_path, text, {"value_range": "0,1000"})


# ----------------------------------------------------------------------------------------------------------------------
# The shipped files

_FID = ("FID, X to Y", "FID, Y to X")
SHIPPED = {
    "leo-dcgan": [384, 55, 123, 98, 72, 136],
    "leo-cyclegan": "122 / 67 | 105 / 83 | 97 / 68 | 115 / 73 | 122 / 70 | 114 / 102 | 87 / 59 | 110 / 76 | 110 / 103",
    "leo-cyclegan-apple2orange": (
        "214 / 181 | 160 / 191 | 119 / 164 | 139 / 181 | 93 / 128 | 133 / 165 | 131 / 172 | 98 / 127 | 84 / 133"
    ),
    "ours": None,
}


def test_every_shipped_file_is_known_here():
    assert {path.stem for path in (ROOT / "sweeps").glob("*.toml")} == SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_has_the_published_numbers(name, tmp_path):
    sweep = read_sweep(ROOT / "sweeps" / f"{name}.toml", tmp_path)
    published = [list(case.published.items()) for case in sweep.cases]
    numbers = SHIPPED[name]
    if isinstance(numbers, str):
        pairs = [map(int, re.findall(r"\d+", pair)) for pair in numbers.split("|")]
        assert published == [list(zip(_FID, pair, strict=True)) for pair in pairs]
    else:
        assert published == [[("FID", number)] for number in numbers] if numbers else not any(published)


def test_the_dcgans_of_the_published_table(tmp_path):
    sweep = read_sweep(ROOT / "sweeps" / "leo-dcgan.toml", tmp_path)
    options = [parse_job(sweep, job) for job in sweep.jobs]
    assert all(isinstance(one, VanillaOptions) for one in options)
    assert [(one.data_aug, bool(one.use_diffaug), one.spectral_norm) for one in options] == [
        (augmentation, diffaug, norm)
        for augmentation in ("basic", "deluxe")
        for diffaug, norm in ((False, False), (True, False), (True, True))
    ]
    assert {(one.num_epochs, one.train_iters, one.lr, one.ema_decay) for one in options} == {(500, None, 2e-4, 0.0)}


@pytest.mark.parametrize("name", ["leo-cyclegan", "leo-cyclegan-apple2orange"])
def test_the_cyclegans_of_the_published_table(name, tmp_path):
    sweep = read_sweep(ROOT / "sweeps" / f"{name}.toml", tmp_path)
    options = [parse_job(sweep, job) for job in sweep.jobs]
    assert all(isinstance(one, CycleOptions) and one.train_iters == 10_000 for one in options)
    assert {one.data for one in options} == {None if name == "leo-cyclegan" else "apple2orange"}
    found = [
        (one.disc, one.use_cycle_consistency_loss, one.use_identity_loss, one.cycle_loss, bool(one.use_diffaug),
         one.spectral_norm) for one in options
    ]  # fmt: skip
    assert found == [
        ("dc", False, False, "L1", False, False),
        ("dc", True, False, "L1", False, False),
        ("patch", False, False, "L1", False, False),
        ("patch", True, False, "L1", False, False),
        ("patch", True, True, "L1", False, False),
        ("patch", True, False, "SSIM", False, False),
        ("patch", True, False, "L1", True, False),
        ("patch", True, False, "L1", False, True),
        ("patch", True, True, "SSIM", True, True),
    ]

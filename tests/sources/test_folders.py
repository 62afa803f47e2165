"""Where images come from: folders, domains, images held out for testing, and the toy cats."""

import os

import pytest

from options.training import CycleOptions, VanillaOptions
from sources import domains as domains_module
from sources import folders
from sources.domains import Domain, find_domains, hold_out
from sources.folders import EXTENSIONS, FolderSource, find_folder, list_images, read_folder
from tests.conftest import make_photo
from utils import UserError

# ---- Files


def test_find_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "DATA_ROOT", tmp_path)
    (tmp_path / "cat" / "b").mkdir(parents=True)
    assert find_folder("cat/b") == tmp_path / "cat" / "b"
    assert find_folder(str(tmp_path / "cat")) == tmp_path / "cat"
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match=r"--data: .*file\.png is a file; give the folder"):
        find_folder("file.png")
    with pytest.raises(UserError, match=r"--X: the folder dog does not exist"):
        find_folder("dog", flag="--X")
    for name in ("", " ", "~no_such_user/x"):
        with pytest.raises(UserError, match="--data"):
            find_folder(name)


def test_a_missing_folder():
    with pytest.raises(
        UserError, match=r"--data: the folder x/../dog does not exist, and neither does [^.]*dog; give the folder"
    ):
        find_folder("x/../dog")
    with pytest.raises(UserError, match="--data: the folder /no/where does not exist; give the folder"):
        find_folder("/no/where")


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.webp", "d.tiff", "e.bmp", "f.jpeg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.webp", "d.tiff", "e.bmp", "f.jpeg"]
    for ext in ("png", ".png", "*.png", "PNG"):
        assert [path.name for path in list_images(tmp_path, ext)] == ["b.PNG"]
    with pytest.raises(UserError, match=r"--ext: 'gif' is unknown; choose from png"):
        list_images(tmp_path, "gif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        list_images(tmp_path / "empty")
    assert str(tmp_path / "empty") in str(error.value) and all(ext in str(error.value) for ext in EXTENSIONS)


@pytest.mark.parametrize(
    "names, expected",
    [
        ([], ""),
        (["notes.txt", "a.json", ".hidden.heic", "Thumbs.db", "desktop.ini", "__MACOSX/", ".git/"], ""),
        (["a.heic", "b.HEIC", "c.heic", "d.gif", "sub/"], "3 .heic, 1 .gif, 1 folder"),
        (["sub/", "more/", "film.mp4", "scan"], "1 .mp4, 1 without extension, 2 folders"),
        (["x.a\nb", "folder.heic/"], "1 .a\\nb, 1 folder"),
        ([f"a.{letter}" for letter in "abcdefghij"], "1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 1 .g, 1 .h, and 2 more"),
    ],
)
def test_what_is_left_out_of_a_folder(photos, names, expected):
    for name in names:
        (photos / name).mkdir() if name.endswith("/") else (photos / name).touch()
    assert read_folder(photos).left_out == expected
    assert read_folder(photos).select([1]).left_out == expected


def test_other_extensions_are_left_out_with_ext(photos):
    (photos / "a.jpg").touch()
    assert read_folder(photos, "png").left_out == "1 .jpg" and read_folder(photos, "png").names[0] == "0.png"


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"--data: no image in .*, but 1 \.heic; accepted extensions: \.png"):
        list_images(tmp_path)


@pytest.mark.parametrize("split", [[], ["--test_split=0.3"]])
def test_a_training_says_once_what_was_left_out(photos, run_once, split):
    for name in ("a.heic", "b.heic", "c.gif"):
        (photos / name).touch()
    (photos / "more").mkdir()
    assert run_once(*split).log.count(f"Left out in {photos}: 2 .heic, 1 .gif, 1 folder\n") == 1


def test_hold_out():
    train, test = hold_out(10, 0.3)
    assert len(test) == 3 and sorted(train + test) == list(range(10)) and (train, test) == hold_out(10, 0.3)
    assert train == sorted(train) and test == sorted(test)
    assert hold_out(10, 0.0) == (list(range(10)), [])
    assert len(hold_out(10, 0.01)[1]) == 1, "a share above 0 holds out at least one"
    assert test != [0, 1, 2] and test != [7, 8, 9], "drawn at random, not the first or the last"
    with pytest.raises(UserError, match=r"--test_split: 0\.9 of 2 images"):
        hold_out(2, 0.9)


def test_a_folder_as_a_source(photos):
    source = FolderSource(list_images(photos))
    assert source.location == photos and source.names == [f"{i}.png" for i in range(10)]
    assert source.sizes() == [(photos / name).stat().st_size for name in source.names]
    with source.open(3) as image:
        assert image.size == (49, 48)
    some = source.select([7, 2])
    assert some.names == ["7.png", "2.png"] and some.files == [photos / "7.png", photos / "2.png"]


@pytest.mark.parametrize("change", ["nothing", "content", "time", "one more", "one less", "broken link"])
def test_the_fingerprint_changes_with_the_images(photos, change):
    before = FolderSource(list_images(photos)).fingerprint()
    path, stat = photos / "3.png", (photos / "3.png").stat()
    if change == "content":
        make_photo((50, 48), 99).save(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    elif change == "one more":
        make_photo((50, 48), 99).save(photos / "new.png")
    elif change == "one less":
        path.unlink()
    elif change == "broken link":
        path.unlink()
        path.symlink_to("nothing.png")
    assert (FolderSource(list_images(photos)).fingerprint() == before) is (change == "nothing")


# ---- Domains


def folders_of(domain: Domain) -> tuple:
    """Return the folders and the flag of a domain, after checking that it has all images of these folders."""
    for source in (domain.train, domain.test):
        assert source is None or source.files == list_images(source.location)
    return domain.train.location, domain.test.location if domain.test is not None else None, domain.flag


def test_domains_of_a_run(domains, photos, monkeypatch):
    [(name, dcgan)] = find_domains(VanillaOptions(data=str(photos))).items()
    assert name == "images" and folders_of(dcgan) == (photos, None, "--data")
    both = find_domains(CycleOptions(data=str(domains)))
    assert list(both) == ["X", "Y"]
    assert folders_of(both["X"]) == (domains / "trainA", domains / "testA", "--data")
    assert folders_of(both["Y"]) == (domains / "trainB", domains / "testB", "--data")
    (domains / "testA").rename(domains / "elsewhere")
    assert find_domains(CycleOptions(data=str(domains)))["X"].test is None
    two = find_domains(CycleOptions(X=str(photos), Y=str(domains / "trainB")))
    assert list(two) == ["X", "Y"]
    assert folders_of(two["X"]) == (photos, None, "--X") and folders_of(two["Y"]) == (domains / "trainB", None, "--Y")
    monkeypatch.setattr(domains_module, "toy_cats", lambda size: domains.rename(domains.with_name(str(size))))
    assert find_domains(VanillaOptions(image_size=32))["images"].train.location == domains.with_name("32") / "trainB"
    monkeypatch.setattr(domains_module, "toy_cats", lambda size: domains.with_name("32") / str(size))
    with pytest.raises(UserError, match=r"--data: .*128 contains no folder trainA"):
        find_domains(CycleOptions(image_size=128))


def test_test_split_holds_out_images_of_the_training_folder(domains):
    for options in (VanillaOptions, CycleOptions):
        root = domains if options is CycleOptions else domains / "trainA"
        domain = next(iter(find_domains(options(data=str(root), test_split=0.3)).values()))
        assert (len(domain.train.names), len(domain.test.names)) == (7, 3), "3 in testA, too: they are not used"
        assert domain.test.location == domains / "trainA"
        assert sorted(domain.train.files + domain.test.files) == list_images(domains / "trainA")


def record(domain: Domain, skipped: tuple[str, ...] = ()) -> dict:
    """Return what data.json says about a domain."""
    test = [] if domain.test is None else [*domain.test.names]
    return {"train": dict.fromkeys(domain.train.names, 0), "test": test, "skipped": dict.fromkeys(skipped, "broken")}


@pytest.mark.golden
def test_added_images_do_not_change_the_split_of_a_run(photos):
    """Control: a new draw of the split tests on images that the run was trained on."""
    options = VanillaOptions(data=str(photos), test_split=0.4)
    before = find_domains(options)["images"]
    for i in range(5):
        make_photo((40, 40), 50 + i).save(photos / f"3{i}.png")
    after = find_domains(options, {"images": record(before)})["images"]
    assert (after.train.files, after.test.files) == (before.train.files, before.test.files)
    assert (before.num_new, after.num_new) == (0, 5)
    wrong = find_domains(options)["images"]
    assert set(wrong.test.names) & set(before.train.names), "a new draw"


def test_recorded_images_of_two_domains(domains):
    """Images added to trainA, testA and a folder that is new; the other order of names; an image that was skipped."""
    (domains / "testB").rename(domains / "elsewhere")
    options = CycleOptions(data=str(domains))
    before = find_domains(options)
    recorded = {name: record(domain, ("trainA/bad.png",)) for name, domain in before.items()}
    (domains / "elsewhere").rename(domains / "testB")
    for name in ("trainA/00.png", "trainA/bad.png", "testA/9.png"):
        make_photo((40, 40), 0).save(domains / name)
    after = find_domains(options, recorded)
    for name in ("X", "Y"):
        assert after[name].train.files == before[name].train.files
    assert after["X"].test.files == before["X"].test.files and after["Y"].test is None
    assert (after["X"].num_new, after["Y"].num_new) == (2, 3), "bad.png is not new; all of testB is"
    for path in (domains / "testA").glob("[0-2].png"):
        path.unlink()
    assert find_domains(options, recorded)["X"].test is None


def test_recorded_images_that_are_missing_are_left_out(photos, domains):
    options = VanillaOptions(data=str(photos))
    recorded = {"images": record(find_domains(options)["images"])}
    (photos / "3.png").unlink()
    assert find_domains(options, recorded)["images"].train.names == [f"{i}.png" for i in range(10) if i != 3]
    for path in photos.iterdir():
        path.rename(photos / f"renamed-{path.name}")
    with pytest.raises(UserError, match=r"--data: none of the 10 images .* in .*photos \(first: 0\.png\); give the"):
        find_domains(options, recorded)


def test_the_extension_selects_files(domains):
    make_photo((40, 40), 0).save(domains / "trainA" / "a.jpg")
    options = VanillaOptions(data=str(domains / "trainA"), ext="jpg")
    assert find_domains(options)["images"].train.names == ["a.jpg"]


# ---- Toy cats


def test_toy_cats_that_cannot_be_drawn_are_one_error(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--image_size, --data: .* \(size 48 is not one of 32, .*\); use another size"):
        domains_module.toy_cats(48)
    monkeypatch.setattr(domains_module, "default_root", lambda size: tmp_path / "file" / "cats")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--image_size, --data: .*File exists.*; use another size, or a folder"):
        domains_module.toy_cats(64)
    monkeypatch.setattr(domains_module, "default_root", lambda size: tmp_path)
    with pytest.raises(UserError, match=r"^--data: .*rename or delete the folder, .*, or use a folder of images$"):
        domains_module.toy_cats(64)

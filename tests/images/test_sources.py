"""Where images come from: folders, domains, images held out for testing, and the toy cats."""

import os

import pytest

from images import sources
from images.sources import EXTENSIONS, Domain, FolderSource, find_domains, find_folder, hold_out, list_images
from options.training import CycleOptions, VanillaOptions
from tests.conftest import make_photo
from utils import UserError

# ---- Files


def test_find_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DATA_ROOT", tmp_path)
    (tmp_path / "cat" / "b").mkdir(parents=True)
    assert find_folder("cat/b") == tmp_path / "cat" / "b"
    assert find_folder(str(tmp_path / "cat")) == tmp_path / "cat"
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match=r"--data: .*file\.png is a file; give the folder"):
        find_folder("file.png")
    with pytest.raises(UserError, match=r"--X: there is no folder dog"):
        find_folder("dog", flag="--X")
    for name in ("", " ", "~no_such_user/x"):
        with pytest.raises(UserError, match="--data"):
            find_folder(name)


def test_a_missing_folder():
    with pytest.raises(UserError, match=r"--data: there is no folder x/../dog, nor [^.]*dog; give the folder"):
        find_folder("x/../dog")
    with pytest.raises(UserError, match="--data: there is no folder /no/where; give the folder"):
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
    monkeypatch.setattr(sources, "toy_cats", lambda size: domains.rename(domains.with_name(str(size))))
    assert find_domains(VanillaOptions(image_size=32))["images"].train.location == domains.with_name("32") / "trainB"
    monkeypatch.setattr(sources, "toy_cats", lambda size: domains.with_name("32") / str(size))
    with pytest.raises(UserError, match=r"--data: .*128 contains no folder trainA"):
        find_domains(CycleOptions(image_size=128))


def test_test_split_holds_out_images_of_the_training_folder(domains):
    for options in (VanillaOptions, CycleOptions):
        root = domains if options is CycleOptions else domains / "trainA"
        domain = next(iter(find_domains(options(data=str(root), test_split=0.3)).values()))
        assert (len(domain.train.names), len(domain.test.names)) == (7, 3), "3 in testA, too: they are not used"
        assert domain.test.location == domains / "trainA"
        assert sorted(domain.train.files + domain.test.files) == list_images(domains / "trainA")


def test_the_extension_selects_files(domains):
    make_photo((40, 40), 0).save(domains / "trainA" / "a.jpg")
    options = VanillaOptions(data=str(domains / "trainA"), ext="jpg")
    assert find_domains(options)["images"].train.names == ["a.jpg"]


# ---- Toy cats


def test_toy_cats_that_cannot_be_drawn_are_one_error(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--image_size, --data: .* \(size 48 is not one of 32, .*\); use another size"):
        sources.toy_cats(48)
    monkeypatch.setattr(sources, "default_root", lambda size: tmp_path / "file" / "cats")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--image_size, --data: .*File exists.*; use another size, or a folder"):
        sources.toy_cats(64)

"""Single image files: alpha, transparency, EXIF rotation and metadata."""

import numpy as np
import pytest
from PIL import Image

from images.files import read_image, write_image
from tests.conftest import make_photo


@pytest.mark.parametrize("ending", [".png", ".webp", ".tiff"])
def test_alpha_is_kept(tmp_path, ending):
    pixels = np.dstack([np.array(make_photo((20, 10), 0)), np.tile(np.arange(0, 200, 10, dtype=np.uint8), (10, 1))])
    write_image(tmp_path / f"a{ending}", pixels)
    assert np.array_equal(read_image(tmp_path / f"a{ending}")[:, :, 3], pixels[:, :, 3])


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == [255, 255, 255, 0]).all()


def test_exif_rotates_the_pixels_and_no_metadata_is_written(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # rotate by 90 degrees; the maker
    make_photo((40, 20), 0).save(tmp_path / "a.jpg", exif=exif)
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == (40, 20, 3)
    write_image(tmp_path / "b.jpg", pixels)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (20, 40) and not image.getexif() and "icc_profile" not in image.info

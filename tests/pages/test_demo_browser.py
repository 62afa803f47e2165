"""Demo pages in Chromium: nothing fetched, the images of `sample` and `translate`, the wall, walks, the camera."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate
from generation.demo import find_runtime, read_runtime
from generation.sampling import seed_latent, slerp
from generation.trained import load_generator
from options.command_line import parse_subcommand
from pages.demo import Demo, Runtime, make_page
from system.program import run_main
from tests.conftest import make_photo, make_photos, train
from utils import UserError, to_pixels

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript onnxruntime")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed: apt-get install chromium")
HOSTILE = "<img src=x onerror=document.title='hacked'>"
TOLERANCE = 2  # of 255 levels

# Safari 16 turns photos as EXIF says, but refuses the option that asks for it.
OLD_SAFARI = """{
    const make = createImageBitmap;
    window.createImageBitmap = (source, options = {}) => {
        if (options.imageOrientation === "from-image") throw new TypeError("not a value of ImageOrientation");
        return make(source, options);
    };
}"""


def generate_cli(*arguments) -> int:
    """Run generate.py in this process; return its exit code."""
    options = parse_subcommand(generate.OPTIONS_OF, "", list(map(str, arguments)))
    return run_main(lambda: generate.main(options), "generate.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DCGAN with a hostile name, a CycleGAN `fruit` of 32x32 images, their pages, and a page without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("system.downloads.RETRIES", 0)
        try:
            runtime = find_runtime(None)
        except UserError as error:
            pytest.skip(f"no runtime: {error}")
    folder = tmp_path_factory.mktemp("demo")
    apples, oranges = make_photos(folder / "apples", 6), make_photos(folder / "oranges", 6, seed=50)
    flags = [f"--checkpoint_dir={folder}", "--train_iters=2"]
    assert train(f"--data={apples}", f"--name={HOSTILE}", "--noise_size=4", *flags) == 0
    flags += ["--name=fruit", "--n_res_blocks=1"]
    assert train(f"--X={apples}", f"--Y={oranges}", *flags, script="cycle_gan.py") == 0
    content = read_runtime(runtime)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("generation.demo.read_runtime", lambda file: content)  # reading it takes a while
        for run, page in {HOSTILE: "cats.html", "fruit": "fruit.html"}.items():
            assert generate_cli("demo", folder / run, f"--runtime={runtime}", "-o", folder / page) == 0
    about = Demo("empty", step=0, image_size=32, directions={"z": "images"}, stride=1, credit="")
    empty = make_page(about, {"z": b""}, Runtime("", content.script, b""), np.zeros((1, 4), np.float32))
    (folder / "empty.html").write_text(empty, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def open_page(folder):
    """A function that opens a page, with settings of the browser; messages and requests are in page.seen."""
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)

        def open_page(name, script="", is_usable=True, **settings):
            page = chromium.new_context(**settings).new_page()
            page.set_default_timeout(20_000)
            page.seen = []
            page.on("console", lambda message: message.type in ("error", "warning") and page.seen.append(message.text))
            page.on("pageerror", lambda error: page.seen.append(str(error)))
            page.on("request", lambda request: page.seen.append(request.url[:200]))
            page.add_init_script(script)
            page.goto((folder / name).as_uri())
            if is_usable:
                page.wait_for_selector("html[data-ready=true]", state="attached")
            page.seen.remove((folder / name).as_uri())
            return page

        yield open_page
        chromium.close()


@pytest.fixture(scope="module")
def cats(open_page):
    return open_page("cats.html", viewport={"width": 800, "height": 500})


@pytest.fixture(scope="module")
def fruit(open_page):
    return open_page("fruit.html", OLD_SAFARI, viewport={"width": 390, "height": 800})


def pixels_of(page, canvas: str) -> np.ndarray:
    """Return the picture of a canvas (H, W, 3)."""
    width, height, values = page.locator(canvas).evaluate(
        "one => [one.width, one.height, [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]]"
    )
    return np.array(values).reshape(height, width, 4)[:, :, :3]


def saved_by(page) -> tuple[str, np.ndarray]:
    """Save the picture; return the name and the pixels of the file."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    content = Path(download.value.path()).read_bytes()
    assert content.startswith(b"\x89PNG")
    return download.value.suggested_filename, np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def choose(page, text: str) -> None:
    """Choose an image of the wall, and wait until it is shown."""
    page.get_by_role("button", name=f"Image: {text}", exact=True).click()
    page.wait_for_selector(f"#picture[data-shown='{text}']")


# ----------------------------------------------------------------------------------------------------------------------
# A DCGAN


def test_it_opens_without_an_error_and_fetches_nothing(cats, fruit):
    for page, name in ((cats, HOSTILE), (fruit, "fruit")):
        assert page.seen == [] and page.title() == f"{name}: demo"
        assert page.locator("h1").inner_text() == name  # shown as text
        assert page.locator("#problem").is_hidden()
    fruit.evaluate("fetch('https://example.com/x').catch(() => 0)")  # the control: the page's own rule stops it
    assert fruit.seen and all("Content Security Policy" in text for text in fruit.seen)
    fruit.seen.clear()


def test_the_wall_draws_what_is_on_the_screen(cats):
    cats.wait_for_selector("#wall button:nth-child(20)[data-drawn]")
    last = cats.locator("#wall button").last
    assert last.get_attribute("title") == "seed 63" and last.get_attribute("data-drawn") is None
    last.scroll_into_view_if_needed()
    cats.wait_for_selector("#wall button:nth-child(64)[data-drawn]")


@pytest.mark.golden
def test_images_are_those_of_sample(cats, folder):
    """At most 2 of 255 levels apart; the image of another seed is not."""
    seeds = (0, 7, 63)
    assert generate_cli("sample", folder / HOSTILE, "--seeds=0,7,8,63", "-o", folder / "drawn", "--device=cpu") == 0
    drawn = {seed: np.array(Image.open(folder / f"drawn/seed-{seed:06d}.png")) for seed in (*seeds, 8)}
    for seed in seeds:
        choose(cats, f"seed {seed}")
        assert distance(pixels_of(cats, "#picture"), drawn[seed]) <= TOLERANCE
        assert distance(pixels_of(cats, f"#wall button:nth-child({seed + 1}) canvas"), drawn[seed]) <= TOLERANCE
    assert distance(drawn[7], drawn[8]) > 5 * TOLERANCE
    name, saved = saved_by(cats)
    assert distance(saved, drawn[63]) <= TOLERANCE and name.endswith("-seed-63.png") and "<" not in name
    cats.get_by_role("button", name="Clear").click()


@pytest.mark.golden
def test_walks(cats, folder):
    """The slider walks on the arc of `interpolate --spherical`; a straight line gives another image."""
    slider, play = cats.locator("#walk"), cats.get_by_role("button", name="Play")
    assert slider.is_disabled() and play.is_disabled()
    for seed in (3, 9, 4):
        choose(cats, f"seed {seed}")
    choose(cats, "seed 9")  # taken out again
    assert cats.locator("#wall [aria-pressed=true]").evaluate_all("all => all.map((one) => one.title)") == [
        "seed 3",
        "seed 4",
    ]
    assert cats.locator("#chosen").inner_text() == "From seed 3 to seed 4."
    G = load_generator(folder / HOSTILE)
    a, b = (seed_latent(seed, G.noise_size) for seed in (3, 4))
    pictures = []
    for at in (0, 40, 100):
        slider.fill(str(at))
        text = {0: "seed 3", 100: "seed 4"}.get(at, f"{at}% from seed 3 to seed 4")
        cats.wait_for_selector(f"#picture[data-shown='{text}']")
        assert slider.get_attribute("aria-valuetext") == cats.locator("#said").inner_text() == text
        pictures.append(pixels_of(cats, "#picture"))
        assert distance(pictures[-1], to_pixels(G(slerp(a, b, at / 100))[0])) <= TOLERANCE
    straight = to_pixels(G(torch.lerp(a, b, 0.4))[0])
    assert distance(pictures[1], straight) > TOLERANCE and distance(pictures[0], pictures[2]) > 5 * TOLERANCE
    slider.press("Home")
    play.click()
    while int(slider.input_value()) <= 20:
        assert cats.get_by_role("button", name="Pause").is_visible()
        cats.wait_for_timeout(20)
    cats.get_by_role("button", name="Pause").click()
    stopped = slider.input_value()
    cats.wait_for_timeout(100)
    assert slider.input_value() == stopped and play.is_visible()
    cats.get_by_role("button", name="Clear").click()
    assert slider.is_disabled() and cats.locator("#wall [aria-pressed=true]").count() == 0


def test_new_images(cats):
    """They are random, come first on the wall, and can be part of a walk."""
    cats.get_by_role("button", name="New image").click()
    cats.wait_for_selector("#picture[data-shown='random 1']")
    first = pixels_of(cats, "#picture")
    cats.get_by_role("button", name="New image").click()
    cats.wait_for_selector("#picture[data-shown='random 2']")
    assert distance(pixels_of(cats, "#picture"), first) > 5 * TOLERANCE
    assert cats.locator("#wall button").first.get_attribute("title") == "random 2"
    choose(cats, "random 1")
    assert distance(pixels_of(cats, "#picture"), first) == 0
    cats.get_by_role("button", name="More images").click()
    assert cats.locator("#wall button").count() == 64 + 2 + 24 and cats.seen == []


# ----------------------------------------------------------------------------------------------------------------------
# A CycleGAN


def give(page, path: Path) -> np.ndarray:
    """Give the page a photo; return the translation."""
    page.evaluate("document.documentElement.dataset.state = ''")
    page.locator("#file").set_input_files(path)
    page.wait_for_selector("html[data-state=done]", state="attached")
    return pixels_of(page, "#after")


def translated(folder: Path, path: Path, direction: str) -> np.ndarray:
    """Return what `generate.py translate` makes of a photo."""
    out = folder / f"out-{direction}.png"
    flags = [f"--direction={direction}", "--image_size=32", "--overwrite", "--device=cpu"]
    assert generate_cli("translate", folder / "fruit", path, *flags, "-o", out) == 0
    return np.array(Image.open(out))


@pytest.mark.golden
def test_translations_are_those_of_translate(fruit, folder):
    """Both directions, at a size that needs padding; the other direction gives another image."""
    path = folder / "photo.png"
    make_photo((45, 32), 3).save(path)
    there, back = (translated(folder, path, direction) for direction in ("X2Y", "Y2X"))
    assert distance(give(fruit, path), there) <= TOLERANCE < 5 * TOLERANCE < distance(there, back)
    fruit.evaluate("document.documentElement.dataset.state = ''")
    fruit.get_by_text("oranges to apples").click()
    fruit.wait_for_selector("html[data-state=done]", state="attached")
    assert distance(pixels_of(fruit, "#after"), back) <= TOLERANCE
    name, saved = saved_by(fruit)
    assert name == "fruit-Y2X.png" and distance(saved, back) <= TOLERANCE
    assert "45\u00d732 pixels" in fruit.locator("#said").inner_text()


def test_a_photo_that_is_resized_and_turned(fruit, folder):
    """By EXIF; browsers resize in another way than Pillow, so the mean difference is small, not the largest."""
    path = folder / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    make_photo((120, 64), 5).save(path, quality=95, exif=exif)
    mine, theirs = give(fruit, path), translated(folder, path, "Y2X")
    assert mine.shape == theirs.shape == (60, 32, 3)
    near, far = (np.abs(mine - one.astype(int)).mean() for one in (theirs, theirs[::-1]))
    assert near < 3 and far > 4 * near


def test_the_divider(fruit):
    divider, before = fruit.locator("#divider"), fruit.locator("#before")
    divider.press("End")
    assert before.evaluate("one => getComputedStyle(one).clipPath").replace("px", "") in ("inset(0)", "inset(0 0% 0 0)")
    divider.fill("30")
    assert fruit.locator("#compare").evaluate("one => one.style.getPropertyValue('--at')") == "30%"


def test_a_dropped_photo_and_a_file_that_is_not_a_photo(fruit):
    fruit.evaluate("""async () => {
        const canvas = new OffscreenCanvas(40, 32), data = new DataTransfer();
        canvas.getContext("2d").fillRect(0, 0, 20, 32);
        data.items.add(new File([await canvas.convertToBlob()], "a.png", { type: "image/png" }));
        document.documentElement.dataset.state = "";
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }""")
    fruit.wait_for_selector("html[data-state=done]", state="attached")
    assert pixels_of(fruit, "#after").shape == (32, 40, 3)
    fruit.locator("#file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    fruit.get_by_text("This browser cannot read a.txt as a picture").wait_for()
    assert pixels_of(fruit, "#after").shape == (32, 40, 3), "the picture before stays"


def test_the_camera(fruit):
    """Refused, then allowed: a photo is taken and translated, and the camera is off again."""
    fruit.get_by_role("button", name="Use the camera").click()
    fruit.get_by_text("The camera was refused").wait_for()
    assert fruit.locator("#viewfinder").is_hidden()
    fruit.context.grant_permissions(["camera"])
    fruit.get_by_role("button", name="Use the camera").click()
    fruit.evaluate("document.documentElement.dataset.state = ''")
    fruit.get_by_role("button", name="Take the photo").click()
    fruit.wait_for_selector("html[data-state=done]", state="attached")
    size = fruit.evaluate("[document.getElementById('after').width, document.getElementById('after').height]")
    assert min(size) == 32 and fruit.evaluate("document.getElementById('video').srcObject") is None
    assert len(np.unique(pixels_of(fruit, "#before"))) > 2 and fruit.seen == []


# ----------------------------------------------------------------------------------------------------------------------
# Both


def test_every_control_has_a_name_and_fits_a_telephone(cats, fruit):
    for page in (cats, fruit):
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        names = page.locator("button, input, canvas[role], video").evaluate_all(
            "all => all.map((one) => one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent)"
        )
        assert len(names) > 8 and all(name.strip() for name in names)


def test_light_and_dark(cats):
    colors = []
    for scheme in ("light", "dark"):
        cats.emulate_media(color_scheme=scheme)
        colors.append(cats.evaluate("[getComputedStyle(document.body).backgroundColor, "
                                    "getComputedStyle(document.body).color]"))  # fmt: skip
    paper, ink, dark_paper, dark_ink = (
        sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) for pair in colors for color in pair
    )
    assert paper > ink + 300 and dark_paper + 300 < dark_ink


@pytest.mark.faults
@pytest.mark.parametrize("missing", ["WebAssembly", "DecompressionStream"])
def test_a_browser_that_cannot_run_it_says_so(missing, open_page):
    page = open_page("empty.html", script=f"delete window.{missing}", is_usable=False)
    page.get_by_text(f"This browser cannot run the network: it has no {missing}").wait_for()
    assert page.get_by_role("button", name="New image").is_disabled()


@pytest.mark.faults
def test_an_error_is_shown_in_the_page(open_page):
    """In place of "Loading the network"."""
    page = open_page("empty.html", script="WebAssembly.instantiate = () => { throw new Error('no memory') }",
                     is_usable=False)  # fmt: skip
    page.get_by_text("Something went wrong").wait_for()
    assert "no memory" in page.locator("#problem").inner_text() and page.locator("#said").inner_text() == ""

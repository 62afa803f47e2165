"""The page about runs in Chromium: no error, nothing fetched, one slider for all grids, zoom, sorting, both themes."""

import re
import shutil

import pytest

from pages.pictures import PictureEncoder
from pages.report import make_page, read_runs
from pages.summary import Cell, Summary, SummaryTable
from tests.helpers.run_folders import write_metrics, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed: apt-get install chromium")
HOSTILE = "<img src=x onerror=document.title='hacked'>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page of three DCGANs, one with a hostile name, and a CycleGAN, under a wide table of a sweep."""
    root = tmp_path_factory.mktemp("runs")
    folders = [write_run(root / HOSTILE, rows=40, grids=5, columns=("G", "D_total", HOSTILE), name=None)]
    folders += [write_run(root / "b", rows=20, grids=3, lr=0.001), write_run(root / "c", rows=20, grids=0)]
    folders += [write_run(root / "fruit", "cycle_gan.py", rows=20, grids=2, columns=("cycle",))]
    for folder, value in zip(folders[:3], (0.5, 10.0, 2.0), strict=True):
        write_metrics(folder, 200, value)
        write_metrics(folder, 100, value + 1, "training")
        write_metrics(folder, 200, value, "training")
    path = root / "report.html"
    columns = ["setting", "a ↓", *"bcdefghij"]
    wide = SummaryTable("Samples", HOSTILE, columns, [[Cell(HOSTILE), *[Cell("1234567 ± 89")] * 10]])
    picture = folders[0] / "samples" / "sample-000000.png"
    summary = Summary("4 runs", HOSTILE, [wide], [HOSTILE], picture)
    path.write_text(make_page(*read_runs(folders), PictureEncoder(), summary), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, page_file):
    """A function that opens the page, with settings of the browser; messages and requests are in page.seen."""
    contexts = []

    def open_page(**settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.seen = []
        page.on("console", lambda message: message.type in ("error", "warning") and page.seen.append(message.text))
        page.on("pageerror", lambda error: page.seen.append(str(error)))
        page.on("request", lambda request: page.seen.append(request.url[:200]))
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready=true]", state="attached")
        page.seen.remove(page_file.as_uri())
        page.seen[:] = [text for text in page.seen if not text.startswith("data:")]
        return page

    yield open_page
    for context in contexts:
        context.close()


def ranges(page) -> list[list[float]]:
    """Return start and end of both axes of all charts: those of the iterations come first."""
    return page.evaluate(
        "figures.map((one) => [one.x_range.start, one.x_range.end, one.y_range.start, one.y_range.end])"
    )


def test_it_opens_without_an_error_and_fetches_nothing(open_page):
    page = open_page()
    page.wait_for_timeout(300)
    assert page.seen == [] and page.title() == "4 runs: report"
    assert page.locator(".name", has_text=HOSTILE).count() == 2  # shown as text
    # Each chart has been drawn: its canvas has pixels of several colors.
    drawn = page.evaluate("""[...document.querySelectorAll(".plot")].map((plot) => {
        const inside = (root) => [...root.querySelectorAll("*")].flatMap((one) =>
            [one, ...(one.shadowRoot ? inside(one.shadowRoot) : [])]);
        const pixels = (one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data.buffer;
        const canvases = inside(plot).filter((one) => one.tagName === "CANVAS" && one.width);
        return Math.max(...canvases.map((one) => new Set(new Uint32Array(pixels(one))).size));
    })""")
    assert len(drawn) == 5 and min(drawn) > 10


def test_an_error_or_a_request_would_be_seen(open_page):
    """The control of the test above."""
    page = open_page()
    page.evaluate("setTimeout(() => { throw new Error('wrong'); }); fetch('https://example.com/x').catch(() => 0)")
    page.wait_for_timeout(300)
    assert any("wrong" in text for text in page.seen) and len(page.seen) >= 2


def test_one_slider_changes_every_grid(open_page):
    page = open_page()

    def shown():
        return page.locator(".series img:visible").evaluate_all("all => all.map((one) => Number(one.dataset.step))")

    slider = page.locator("#step")
    steps = [int(step) for step in slider.get_attribute("data-steps").split(",")]
    assert steps == [0, 100, 200, 300, 400] and shown() == [400, 200, 200, 200]
    slider.focus()
    page.keyboard.press("Home")
    assert shown() == [0, 0, 0, 0] and slider.get_attribute("aria-valuetext") == "iteration 0"
    page.keyboard.press("ArrowRight")
    assert shown() == [100, 100, 0, 0]  # a run without a grid at this iteration shows the one before
    slider.fill("3")
    assert shown() == [300, 200, 200, 200]
    assert page.locator(".series .at").all_inner_texts() == [f"iteration {step}" for step in shown()]
    sizes = page.locator(".series img:visible").evaluate_all("all => all.map((one) => one.naturalWidth)")
    assert set(sizes) == {70}


def test_zoom_by_dragging_and_by_numbers(open_page):
    page = open_page(viewport={"width": 1200, "height": 900})
    start = ranges(page)
    chart = page.locator(".plot").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 150, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    zoomed = ranges(page)
    assert 50 < zoomed[0][0] < zoomed[0][1] < 350 and start[0][2:] != zoomed[0][2:]
    assert zoomed[0][:2] == zoomed[1][:2] == zoomed[2][:2]  # all charts of one script
    assert zoomed[3:] == start[3:]  # those of another script stay
    form = page.locator(".zoom").first
    assert abs(float(form.locator("[name=from]").input_value()) - zoomed[0][0]) <= 0.5
    form.get_by_role("button", name="Show all").click()
    assert ranges(page) == start
    form.locator("[name=from]").fill("100")
    form.locator("[name=to]").fill("300")
    page.keyboard.press("Enter")
    assert [one[:2] for one in ranges(page)[:3]] == [[100, 300]] * 3


def test_smoothing(open_page):
    """0% shows the rows themselves; more shows means of neighbors, as a loop computes them."""
    page = open_page()
    read = """() => { const [raw, smooth] = figures[0].renderers.slice(0, 2).map((one) => one.data_source.data);
        return [Array.from(raw.y), Array.from(smooth.y)]; }"""
    raw, smooth = page.evaluate(read)
    half = len(raw) * 10 // 200
    reach = [min(half, i, len(raw) - 1 - i) for i in range(len(raw))]
    means = [sum(raw[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]
    assert half == 2 and smooth == pytest.approx(means) and smooth != pytest.approx(raw)
    page.locator("#smoothing").fill("0")
    raw, smooth = page.evaluate(read)
    assert smooth == pytest.approx(raw)


def test_a_pointer_on_a_curve_shows_the_hostile_name_as_text(open_page):
    page = open_page(viewport={"width": 1200, "height": 900})
    chart = page.locator(".plot").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tip = page.locator(".bk-tooltip-content", has_text=HOSTILE)
    heights = iter(range(10, 200, 2))
    while not tip.count():  # until the pointer meets the curve; StopIteration if it never does
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + next(heights))
        page.wait_for_timeout(20)
    assert page.title() == "4 runs: report" and page.seen == []


def test_the_table_sorts(open_page):
    page = open_page()
    table = page.locator("table.sortable").first
    heading = table.locator("thead th", has_text="Frechet")
    column = heading.evaluate("one => [...one.parentNode.children].indexOf(one)")

    def values():
        cells = table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
        return [float(re.match(r"[\d.]+", cell)[0]) for cell in cells]

    best = table.locator("tbody strong").all_inner_texts()
    assert values() != sorted(values()) and best == ["0.5", "10"]  # the least distance, the most recall
    heading.get_by_role("button").click()
    assert values() == sorted(values()) and heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")  # by keyboard
    assert values() == sorted(values(), reverse=True) and heading.get_attribute("aria-sort") == "descending"
    table.locator("thead th", has_text="run").get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None
    assert table.locator("tbody th").all_inner_texts()[-1] == "c"


def test_themes(open_page):
    """Light and dark follow the system; the button changes page and curves."""

    def colors(page):
        return page.evaluate("""[getComputedStyle(document.body).backgroundColor,
            figures[0].below[0].major_label_text_color.value ?? figures[0].below[0].major_label_text_color]""")

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert colors(light)[0] != colors(dark)[0] and colors(light)[1] != colors(dark)[1]
    light.get_by_role("button", name="Use dark colors").click()
    assert colors(light) == colors(dark)
    light.get_by_role("button", name="Use light colors").click()
    assert colors(light) != colors(dark)


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_nothing_is_wider_than_the_screen(width, open_page):
    page = open_page(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_headings_and_cards_use_the_space(open_page):
    """The arrow of a heading stays with its last word, also in the tables of a sweep. A single card fills its row."""
    page = open_page(viewport={"width": 1200, "height": 800})
    headings = page.locator("thead th").evaluate_all("all => all.map((one) => one.textContent)")
    arrows = [text for text in headings if "↓" in text or "↑" in text]
    assert any(text.startswith("a\u00a0") for text in arrows) and len(arrows) > 2
    assert not [text for text in arrows if " ↓" in text or " ↑" in text]
    alone = page.locator(".cards").last
    assert alone.locator(".card").count() == 1
    assert alone.locator(".card").bounding_box()["width"] == alone.bounding_box()["width"]
    buttons = page.locator("thead button").evaluate_all("all => all.map((one) => one.scrollWidth - one.clientWidth)")
    assert max(buttons) == 0, "no heading is wider than its column"


def test_a_finger_on_a_chart_scrolls_a_telephone(open_page):
    page = open_page(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    assert page.evaluate("figures.every((one) => one.toolbar.tools.every((tool) => !tool.active || "
                         "tool.type === 'HoverTool'))")  # fmt: skip


def test_copy(open_page):
    """The command goes to the clipboard; if the browser refuses, it is selected."""
    page = open_page()
    page.evaluate("""Object.defineProperty(navigator, "clipboard",
        { value: { writeText: async (text) => { window.copied = text; if (window.refuses) throw new Error(); } } })""")
    button = page.locator("#use .command").first.get_by_role("button")
    button.click()
    page.wait_for_function("document.getElementById('said').textContent === 'copied'")
    command = page.evaluate("copied")
    assert command.startswith("python vanilla_gan.py --resume '/") and "<img src=x" in command
    page.evaluate("window.refuses = true")
    button.click()
    page.wait_for_function("document.getElementById('said').textContent === 'selected'")
    assert page.evaluate("getSelection().toString()") == command


def test_print(open_page):
    """On paper the page is light and has no controls; afterwards it is as before."""
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav, .copy, .zoom").evaluate_all(
        "all => all.every((one) => getComputedStyle(one).display === 'none')"
    )
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("""window.printed = "";
        addEventListener("beforeprint", () => { printed = figures[0].below[0].major_label_text_color; })""")
    before = page.evaluate("figures[0].below[0].major_label_text_color")
    assert len(page.pdf()) > 20_000 and page.evaluate("printed") != before
    assert page.evaluate("[figures[0].below[0].major_label_text_color, isDark()]") == [before, True]

"use strict";
const $ = (selector) => [...document.querySelectorAll(selector)];
const say = (text) => { document.getElementById("said").textContent = text; };

// The theme: that of the system, until the button chooses the other one. Curves take their colors from the style sheet.
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (systemIsDark.matches ? "dark" : "light")) === "dark";
let figures = [];

function color() {
  const style = getComputedStyle(document.documentElement);
  const [quiet, line, grid] = ["--quiet", "--line", "--grid"].map((name) => style.getPropertyValue(name).trim());
  for (const figure of figures) {
    for (const axis of [...figure.below, ...figure.left])
      axis.setv({
        axis_label_text_color: quiet, major_label_text_color: quiet, axis_line_color: line, major_tick_line_color: line,
        minor_tick_line_color: null, axis_label_text_font_style: "normal",
      });
    for (const part of figure.center) if ("grid_line_color" in part) part.grid_line_color = grid;
  }
  const button = document.getElementById("theme");
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-pressed", String(isDark()));
  button.setAttribute("aria-label", isDark() ? "Use light colors" : "Use dark colors");
}
document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  color();
});
systemIsDark.addEventListener("change", color);
let themeOnScreen;  // on paper the colors are light
addEventListener("beforeprint", () => {
  themeOnScreen = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  color();
  figures.forEach((one) => Bokeh.index.find_one(one).repaint());  // now: the browser does not wait for the next frame
});
addEventListener("afterprint", () => {
  if (themeOnScreen) document.documentElement.dataset.theme = themeOnScreen;
  else delete document.documentElement.dataset.theme;
  color();
});

// One slider for the grids of all runs: each shows its newest grid up to that iteration, or else its first one.
const slider = document.getElementById("step");
function showGrids() {
  const step = Number(slider.dataset.steps.split(",")[slider.value]);
  document.getElementById("step-text").textContent = step.toLocaleString("en");
  slider.setAttribute("aria-valuetext", `iteration ${step}`);
  for (const series of $(".series")) {
    const images = [...series.querySelectorAll("img")];
    const shown = images.filter((image) => Number(image.dataset.step) <= step).pop() || images[0];
    images.forEach((image) => { image.hidden = image !== shown; });
    series.querySelector(".at").textContent = `iteration ${Number(shown.dataset.step).toLocaleString("en")}`;
  }
}
if (slider) slider.addEventListener("input", showGrids);

// Tables: the button of a heading sorts, first upwards, then downwards. Cells without a number come last.
function sortBy(heading) {
  const table = heading.closest("table");
  const column = [...heading.parentNode.children].indexOf(heading);
  const isDown = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const key = (row) => {
    const cell = row.children[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.textContent.trim() === "-" ? null : cell.textContent.trim();
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return isDown ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
  say(`sorted by ${heading.textContent.trim()}, ${isDown ? "descending" : "ascending"}`);
}
$(".sortable thead button").forEach((button) => button.addEventListener("click", () => sortBy(button.closest("th"))));

// Copy a command; a browser that refuses gets it selected.
$(".copy").forEach((button) => button.addEventListener("click", async () => {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    say("copied");
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } catch {
    getSelection().selectAllChildren(code);
    say("selected");
  }
}));

// Curves.
function movingAverage(values, half) {
  const sums = [0], counts = [0];
  for (const value of values) {
    const isKnown = Number.isFinite(value);
    sums.push(sums.at(-1) + (isKnown ? value : 0));
    counts.push(counts.at(-1) + (isKnown ? 1 : 0));
  }
  return Array.from(values, (_, i) => {
    const reach = Math.min(half, i, values.length - 1 - i);
    const [low, high] = [i - reach, i + reach + 1];
    const count = counts[high] - counts[low];
    return count && Number.isFinite(values[i]) ? (sums[high] - sums[low]) / count : NaN;
  });
}
function smooth() {
  const input = document.getElementById("smoothing");
  document.getElementById("smoothing-text").textContent = `${input.value}%`;
  input.setAttribute("aria-valuetext", `over ${input.value} percent of a curve`);
  for (const doc of new Set(figures.map((figure) => figure.document)))
    for (const target of doc.all_models) {
      if (!Array.isArray(target.tags) || target.tags[0] !== "smooth") continue;
      const raw = doc.get_model_by_id(target.tags[1]).data;
      const half = Math.floor(raw.step.length * input.value / 200);
      target.data = Object.fromEntries(Object.entries(raw).map(([name, values]) =>
        [name, name === "step" ? values : movingAverage(values, half)]));
    }
}
// The boxes below a group of charts show and set their common range: zooming without a pointer.
function addZoom(form) {
  const first = figures.find((one) => one.elementId === form.dataset.chart);
  const group = figures.filter((one) => one.document === first.document);
  const range = first.x_range;
  const { from, to } = form.elements;
  const show = () => { from.value = Math.round(range.start); to.value = Math.round(range.end); };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [start, end] = [Number(from.value), Number(to.value)];
    if (end > start) range.setv({ start, end });
    show();
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    for (const one of group) { one.x_range.reset(); one.y_range.reset(); }
    show();
  });
  for (const part of ["start", "end"]) range.properties[part].change.connect(show);
  show();
}
async function drawCurves() {
  for (const { doc, roots } of JSON.parse(document.getElementById("curves").textContent)) {
    const item = { docid: "d", roots, root_ids: Object.keys(roots) };
    await Bokeh.embed.embed_items({ d: doc }, [item]);
    for (const figure of Bokeh.documents.at(-1).roots()) {
      figure.elementId = roots[figure.id];
      figures.push(figure);
      // On a touch screen, a finger on a chart scrolls the page.
      if (matchMedia("(pointer: coarse)").matches) figure.toolbar.tools.forEach((tool) => { tool.active = false; });
    }
  }
  color();
  if (document.getElementById("smoothing")) {
    smooth();
    document.getElementById("smoothing").addEventListener("input", smooth);
  }
  $(".zoom").forEach(addZoom);
  document.documentElement.dataset.ready = "true";
}
drawCurves();

// The page of a DCGAN: one large image, a wall of small ones, and walks between those that are chosen.
const MORE = 24;  // random images that "More images" adds
const STEPS = 100;  // of the slider from one chosen image to the next
const SECONDS = 1.5;  // for as much, when the walk is played
const known = new Float32Array(bytesOf(about.latents).buffer);  // z of the seeds 0, 1, ...
const noiseSize = known.length / about.seeds;
const picture = part("picture"), slider = part("walk");
let tiles = [], chosen = [], countRandom = 0;

const draw = async (canvas, latent) =>
  paint(canvas, await run("z", latent, [1, noiseSize, 1, 1]), about.size, about.size);

const show = newest(async (latent, text) => {
  await draw(picture, latent);
  picture.dataset.shown = text;
  picture.setAttribute("aria-label", `Generated image: ${text}`);
  say(text);
});

// The wall draws one image after another, only those on the screen, and lets everything else come between.
const due = new Set();
const drawWall = newest(async () => {
  while (due.size) {
    const [tile] = due;
    due.delete(tile);
    await draw(tile.canvas, tile.latent);
    tile.button.dataset.drawn = "true";
    await pause();
  }
});
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const tile = tiles.find((one) => one.button === target);
    if (isIntersecting && !tile.button.dataset.drawn) due.add(tile);
    else due.delete(tile);
  }
  drawWall();
}, { rootMargin: "100px" });

function addTile(text, latent, isFirst = false) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  button.type = "button";
  button.title = text;
  button.setAttribute("aria-label", `Image: ${text}`);
  button.setAttribute("aria-pressed", "false");
  canvas.width = canvas.height = about.size;
  button.append(canvas);
  const tile = { text, latent, button, canvas };
  button.addEventListener("click", () => choose(tile));
  tiles.push(tile);
  part("wall")[isFirst ? "prepend" : "append"](button);
  watcher.observe(button);
  return tile;
}
function addRandom(isFirst) {
  const latent = Float32Array.from({ length: noiseSize }, () => Math.random() * 2 - 1);  // uniform in [-1, 1]
  return addTile(`random ${++countRandom}`, latent, isFirst);
}

// The walk: an arc from each chosen image to the next one, as `generate.py interpolate --spherical` draws it.
function slerp(a, b, t) {
  const dot = (u, v) => u.reduce((sum, value, i) => sum + value * v[i], 0);
  const [lengthA, lengthB] = [Math.sqrt(dot(a, a)), Math.sqrt(dot(b, b))];
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a, b) / (lengthA * lengthB))));
  if (!(Math.sin(angle) > 1e-3)) return a.map((value, i) => (1 - t) * value + t * b[i]);  // no single arc
  const [shareA, shareB] = [Math.sin((1 - t) * angle) / lengthA, Math.sin(t * angle) / lengthB];
  const scale = ((1 - t) * lengthA + t * lengthB) / Math.sin(angle);
  return a.map((value, i) => Math.min(1, Math.max(-1, (shareA * value + shareB * b[i]) * scale)));
}
function choose(tile) {
  stop();
  chosen = chosen.includes(tile) ? chosen.filter((one) => one !== tile) : [...chosen, tile];
  showChosen();
  slider.value = chosen.includes(tile) ? slider.max : Math.min(slider.value, slider.max);
  describeSlider(tile.text);
  show(tile.latent, tile.text);
}
function showChosen() {
  for (const { button } of tiles) {
    button.setAttribute("aria-pressed", "false");
    delete button.dataset.place;
  }
  chosen.forEach(({ button }, i) => {
    button.setAttribute("aria-pressed", "true");
    button.dataset.place = i + 1;
  });
  slider.disabled = part("play").disabled = chosen.length < 2;
  slider.max = Math.max(1, chosen.length - 1) * STEPS;
  part("clear").disabled = !chosen.length;
  const missing = chosen.length ? "Choose one more image" : "Choose two or more images on the wall";
  part("chosen").textContent = chosen.length < 2 ? `${missing} to walk between them.`
    : `From ${chosen.map((one) => one.text).join(" to ")}.`;
}
function describeSlider(text) { slider.setAttribute("aria-valuetext", text); }
function walk() {
  const k = Math.min(Math.floor(slider.value / STEPS), chosen.length - 2);
  const t = slider.value / STEPS - k;
  const [a, b] = [chosen[k], chosen[k + 1]];
  const percent = Math.round(100 * t);
  const text = percent === 0 ? a.text : percent === 100 ? b.text : `${percent}% from ${a.text} to ${b.text}`;
  describeSlider(text);
  show(slerp(a.latent, b.latent, t), text);
}

// Playing moves the slider, there and back. A screen reader then does not read every step.
let isPlaying = false;
function setPlaying(value) {
  isPlaying = value;
  part("play").textContent = value ? "Pause" : "Play";
  part("said").setAttribute("aria-live", value ? "off" : "polite");
}
const stop = () => setPlaying(false);
function play() {
  setPlaying(!isPlaying);
  if (!isPlaying) return;
  const end = Number(slider.max);
  let before = performance.now(), way = Number(slider.value);
  function step(now) {
    if (!isPlaying) return;
    way = (way + (now - before) / 1000 / SECONDS * STEPS) % (2 * end);
    before = now;
    slider.value = way < end ? way : 2 * end - way;
    walk();
    requestAnimationFrame(step);
  }
  requestAnimationFrame(step);
}

slider.addEventListener("input", () => { stop(); walk(); });
part("play").addEventListener("click", play);
part("clear").addEventListener("click", () => { stop(); chosen = []; showChosen(); });
part("new").addEventListener("click", () => {
  stop();
  const tile = addRandom(true);
  show(tile.latent, tile.text);
});
part("more").addEventListener("click", () => { for (let i = 0; i < MORE; i++) addRandom(false); });
part("save").addEventListener("click", () => savePNG(picture, picture.dataset.shown));

for (let seed = 0; seed < about.seeds; seed++)
  addTile(`seed ${seed}`, known.subarray(seed * noiseSize, (seed + 1) * noiseSize));
showChosen();
await show(tiles[0].latent, tiles[0].text);
for (const id of ["new", "save", "more"]) part(id).disabled = false;
document.documentElement.dataset.ready = "true";

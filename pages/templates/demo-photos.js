// The page of a CycleGAN: a photo from a file or the camera, its translation, and a divider between the two.
const before = part("before"), after = part("after"), video = part("video");
let photo = null;  // an ImageBitmap, upright

const chosenDirection = () => document.querySelector("[name=direction]:checked").value;

// Index of a row or column in a side of `size` pixels, for a padded side: by reflection, or by repeating the last one
// where the side is too short for that.
function paddedIndices(size, stride) {
  const padded = Math.max(Math.ceil(size / stride), 2) * stride;
  const isReflected = padded - size < size;
  return Array.from({ length: padded }, (_, i) => (i < size ? i : isReflected ? 2 * (size - 1) - i : size - 1));
}
// Pixels (RGBA, [0, 255]) -> values (3, H, W) in [-1, 1], padded to multiples of the stride.
function toInput({ data, width, height }) {
  const rows = paddedIndices(height, about.stride), columns = paddedIndices(width, about.stride);
  const values = new Float32Array(3 * rows.length * columns.length);
  let at = 0;
  for (let c = 0; c < 3; c++)
    for (const y of rows)
      for (const x of columns) values[at++] = data[4 * (y * width + x) + c] / 127.5 - 1;
  return [values, [1, 3, rows.length, columns.length]];
}

const translate = newest(async () => {
  const scale = about.size / Math.min(photo.width, photo.height);
  const [width, height] = [photo.width, photo.height].map((side) => Math.max(1, Math.round(side * scale)));
  before.width = width;
  before.height = height;
  const pen = before.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";  // behind transparent pixels
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(photo, 0, 0, width, height);
  say("Translating…");
  document.documentElement.dataset.state = "busy";
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));  // shows the text first
  const started = performance.now();
  paint(after, await run(chosenDirection(), ...toInput(pen.getImageData(0, 0, width, height))), width, height);
  const seconds = (performance.now() - started) / 1000;
  part("compare").style.maxWidth = `calc(70vh * ${width} / ${height})`;
  part("result").hidden = false;
  say(`Translated ${width}×${height} pixels in ${seconds.toFixed(seconds < 1 ? 2 : 1)} s. Drag the line to compare.`);
  document.documentElement.dataset.state = "done";
});

async function usePhoto(source, name) {
  try {
    photo = await createImageBitmap(source);  // turned as EXIF says; Safari 16 refuses an option that asks for it
  } catch {
    say(`This browser cannot read ${name} as a picture. Choose another file, such as a JPEG or PNG.`);
    return;
  } finally {
    closeCamera();
  }
  await translate();
}

// The camera.
function closeCamera() {
  if (video.srcObject) video.srcObject.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  part("viewfinder").hidden = true;
}
async function openCamera() {
  const otherwise = 'You can choose a photo instead; on a telephone, "Choose a photo" also offers the camera.';
  if (!navigator.mediaDevices) {
    say(`This browser gives no camera to a page that was opened from a file. ${otherwise}`);
    return;
  }
  try {
    closeCamera();
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
    part("viewfinder").hidden = false;
    say("The camera is on. Its pictures stay on your device.");
    part("take").focus();
  } catch (error) {
    closeCamera();
    const isRefused = error.name === "NotAllowedError" || error.name === "SecurityError";
    say(isRefused ? `The camera was refused. Allow it in the browser to use it. ${otherwise}`
      : `No camera can be used (${error.message}). ${otherwise}`);
  }
}

part("choose").addEventListener("click", () => part("file").click());
part("file").addEventListener("change", () => {
  const [file] = part("file").files;
  part("file").value = "";  // so that the same file can be chosen again
  if (file) usePhoto(file, file.name);
});
for (const name of ["dragover", "dragleave", "drop"])
  addEventListener(name, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", name === "dragover");
    const [file] = name === "drop" ? event.dataTransfer.files : [];
    if (file) usePhoto(file, file.name);
  });
part("camera").addEventListener("click", openCamera);
part("take").addEventListener("click", () => usePhoto(video, "the camera"));
part("leave").addEventListener("click", () => { closeCamera(); say("The camera is off."); });
part("directions").addEventListener("change", () => { if (photo) translate(); });
part("divider").addEventListener("input", () => part("compare").style.setProperty("--at", `${part("divider").value}%`));
part("save").addEventListener("click", () => savePNG(after, chosenDirection()));

await runtime;
await load(chosenDirection());
say("Ready: choose a photo.");
document.documentElement.dataset.ready = "true";

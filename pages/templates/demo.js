// Shared by both kinds of page: the network and its runtime, pictures, files.
const about = JSON.parse(document.getElementById("about").textContent);
const part = (id) => document.getElementById(id);
const say = (text) => { part("said").textContent = text; };
const pause = () => new Promise((resolve) => setTimeout(resolve));

// Bytes of a text in base64. The text is removed from the page: a network may be large.
function bytesOf(text) {
  const found = atob(text);
  const bytes = new Uint8Array(found.length);
  for (let i = 0; i < found.length; i++) bytes[i] = found.charCodeAt(i);
  return bytes;
}
function takeBytes(id) {
  const text = part(id).textContent;
  part(id).remove();
  return bytesOf(text);
}

async function loadRuntime() {
  const packed = new Blob([takeBytes("binary")]).stream();
  ort.env.wasm.numThreads = 1;  // more would need a web server with special headers
  ort.env.wasm.wasmBinary = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
const runtime = window.isUsable ? loadRuntime() : new Promise(() => {});  // the page has said why

const sessions = {};
const load = (direction) => (sessions[direction] ??= ort.InferenceSession.create(takeBytes(`network-${direction}`)));

// Run the network of a direction on one input; runs wait for each other. Returns its output (1, 3, H, W).
let lastRun = runtime;
function run(direction, values, shape) {
  const result = lastRun.then(async () => {
    const session = await load(direction);
    return (await session.run({ input: new ort.Tensor("float32", values, shape) })).output;
  });
  lastRun = result.catch(() => {});
  return result;
}

// Paint the upper left width x height pixels of an output, [-1, 1] -> [0, 255], clipped and rounded by the array.
function paint(canvas, output, width, height) {
  const [, , rows, columns] = output.dims;
  const picture = new ImageData(width, height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) picture.data[at + c] = (output.data[(c * rows + y) * columns + x] + 1) * 127.5;
      picture.data[at + 3] = 255;
    }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(picture, 0, 0);
}

// Return a function that does `work` with its newest arguments: of the calls during `work`, only the last one counts.
function newest(work) {
  let waiting = null, isBusy = false;
  return async (...inputs) => {
    waiting = inputs;
    if (isBusy) return;
    isBusy = true;
    try {
      while (waiting) {
        const now = waiting;
        waiting = null;
        await work(...now);
      }
    } finally {
      isBusy = false;
    }
  };
}

function savePNG(canvas, name) {
  canvas.toBlob((content) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `${about.name}-${name}`.replace(/[^\p{L}\p{N}._-]+/gu, "-") + ".png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }, "image/png");
}

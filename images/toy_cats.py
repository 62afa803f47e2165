"""Draw the embedded data set: cartoon cat faces in two domains.

    python -m images.toy_cats [--size 64] [--seed 11] [--out data/toy_cats]

Domain A has friendly gray cats, domain B grumpy cats (cream fur, dark mask, blue eyes, heavy lids). The folder gets:

    trainA/000.png ...  trainB/000.png ...   cats drawn independently of each other: unpaired training images
    testA/000.png ...   testB/000.png ...    the same cat in both domains under the same name, so that a translation
                                             of testA/000.png can be compared with testB/000.png
    attributes.json                          the parameters of the set, and the attributes of every cat in it

An image depends only on the seed, its split and its index; equal seeds give equal bytes. Every shape is a field over
the pixels, positive inside and in units of the face, so its edge is one pixel wide (anti-aliased) at every size. Then
the whole picture is blurred a little, as by the lens of a camera: a GAN learns such edges in fewer iterations.
"""

import argparse
import colorsys
import contextlib
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from images.canvas import Canvas, blur
from options.fields import IMAGE_SIZES, expand_home
from system.program import run_main
from utils import UserError, one_line, shorten

DEFAULT_ROOT = Path(__file__).parent.parent / "data" / "toy_cats"
FORMAT = 3  # raise it when the same seed gives other pictures
WHITE, INK = (1.0, 1.0, 1.0), (0.10, 0.08, 0.09)

# The attributes of a cat in any domain: a translation must keep them. These have values in [0, 1]:
UNIT = (
    "scale", "head_width", "head_height", "cheeks", "fluff",  # fluff: length of the tufts of fur
    "fur", "patch",  # fur: dark to light; patch: how pale the muzzle (A), how far the dark mask reaches (B)
    "ear_height", "ear_width", "ear_tilt",  # ear_tilt: upright to sideways
    "eye_size", "eye_gap", "eye_open", "eye_hue", "pupil",  # eye_hue: amber to green (A), deep to pale blue (B)
    "muzzle", "nose", "mouth", "whiskers",  # mouth: how strong the smile or the frown is
    "hue", "brightness", "vignette",  # the first two of the background
)  # fmt: skip
# These have values in [-1, 1], more often near 0:
SIGNED = (
    "x", "y", "roll", "turn", "gaze_x", "gaze_y",  # pose: x and turn to the right, y down, roll clockwise
    "tint", "ear_twist", "stripes",  # tint: cool to warm fur; stripes: their strength, none below 0
    "hue_shift", "light_x", "warmth",  # of the background's second color; where the light comes from; of the light
)  # fmt: skip
BACKGROUNDS = ("plain", "gradient", "two-tone", "circles")  # for "background"; "grain" (0 to 65,535) is a random seed


def random_attributes(rng: random.Random) -> dict:
    """Draw the attributes of a cat, plain JSON types, by `rng.random()`: it is the same in all versions of Python."""
    attributes = {name: round(rng.random(), 4) for name in UNIT}
    attributes |= {name: round(rng.random() + rng.random() - 1, 4) for name in SIGNED}
    return attributes | {"background": BACKGROUNDS[int(4 * rng.random())], "grain": int(65536 * rng.random())}


def draw_cat(attributes: dict, domain: str, size: int) -> Image.Image:
    """Draw a cat of `random_attributes`, RGB, size x size, as a gray cat (domain "A") or as a grumpy cat ("B")."""
    check_size(size)
    cat, grumpy = SimpleNamespace(**attributes), {"A": False, "B": True}[domain]
    canvas, colors = Canvas(cat, size), palette(cat, grumpy)
    for draw in (draw_background, draw_head, draw_eyes, draw_muzzle):
        draw(canvas, cat, colors, grumpy)
    # Light the scene: from one side and above, darker towards the corners, warmer or cooler.
    light = 1.02 + 0.16 * cat.light_x * canvas.x - 0.10 * canvas.y
    light = light - (0.05 + 0.15 * cat.vignette) * (canvas.x**2 + canvas.y**2)
    warmth = np.array([1 + 0.06 * cat.warmth, 1, 1 - 0.06 * cat.warmth], np.float32)
    image = blur(np.clip(canvas.image * light * warmth[:, None, None], 0, 1))
    return Image.fromarray((image * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))  # (size, size, 3)


def rgb(code: str) -> tuple[float, ...]:
    """Return 'ff8000' as three numbers, 0 to 1."""
    return tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))


def mix(a, b, t: float) -> tuple[float, ...]:
    """Return the color between a (t = 0) and b (t = 1)."""
    return tuple(p + (q - p) * t for p, q in zip(a, b, strict=True))


def palette(cat: SimpleNamespace, grumpy: bool) -> dict[str, tuple[float, ...]]:
    """Return the colors of a cat in its domain."""
    if grumpy:
        fur, dark = mix(rgb("d8c2a2"), rgb("f3eadb"), cat.fur), mix(rgb("4a342b"), rgb("7c5f4e"), cat.fur)
        coat = dict(fur=fur, dark=dark, ear=mix(dark, INK, 0.15), lid=mix(dark, fur, 0.25), pale=mix(fur, WHITE, 0.4))
        eye, nose = mix(rgb("2f83d6"), rgb("8fd0f5"), cat.eye_hue), rgb("4b3532")
    else:
        fur = mix(rgb("676c78"), rgb("b4b9c1"), cat.fur)
        coat = dict(fur=fur, dark=mix(fur, INK, 0.45), ear=mix(fur, INK, 0.14), lid=mix(fur, INK, 0.6),
                    pale=mix(fur, WHITE, 0.35 + 0.5 * cat.patch))  # fmt: skip
        amber, yellow, green = rgb("e8962e"), rgb("edd04a"), rgb("84c65a")
        eye, nose = mix(mix(amber, yellow, min(1, 2 * cat.eye_hue)), green, max(0, 2 * cat.eye_hue - 1)), rgb("e2858d")
    tint = (0.030 * cat.tint, 0.004 * cat.tint, -0.032 * cat.tint)
    coat = {part: tuple(c + t for c, t in zip(color, tint, strict=True)) for part, color in coat.items()}
    return coat | {"eye": eye, "nose": nose}


def draw_background(canvas: Canvas, cat: SimpleNamespace, colors: dict, grumpy: bool) -> None:
    """Draw one color, a gradient, a wall above a floor, or blurred circles."""
    light = 0.5 + 0.4 * cat.brightness
    canvas.paint(1.0, colorsys.hsv_to_rgb(cat.hue, 0.36, light))
    second = colorsys.hsv_to_rgb((cat.hue + 0.3 * cat.hue_shift) % 1, 0.42, light * 0.72)
    slope = canvas.y + 0.3 * cat.light_x * canvas.x
    if cat.background == "gradient":
        canvas.paint(np.clip(0.5 + 0.5 * slope, 0, 1), second)
    elif cat.background == "two-tone":
        canvas.paint(canvas.inside(slope - 0.1 - 0.3 * cat.hue_shift, 0.05), second)
    elif cat.background == "circles":
        rng = random.Random(cat.grain)
        for _ in range(6):
            radius, x, y = 0.16 + 0.24 * rng.random(), 2 * rng.random() - 1, 2 * rng.random() - 1
            color = mix(second, WHITE, 0.75 * rng.random())
            canvas.paint(0.6 * canvas.ellipse(canvas.x - x, canvas.y - y, radius, radius, 0.06), color)


def draw_head(canvas: Canvas, cat: SimpleNamespace, colors: dict, grumpy: bool) -> None:
    """Draw shoulders, ears, head and the markings of its fur."""
    u, v, paint = canvas.u, canvas.v, canvas.paint
    width, crown = 0.68 + 0.11 * cat.head_width, 0.58 + 0.08 * cat.head_height
    face = u - 0.10 * cat.turn  # the face moves to the side that the cat turns to, the ears to the other side
    far, beyond = np.abs(face), np.abs(u) - width
    # Shoulders, and a pale bib.
    low = canvas.between(0.3, 2.0)
    low.paint(low.ellipse(low.u, low.v - 1.0, 0.8, 0.55), mix(colors["fur"], INK, 0.22))
    low.paint(0.7 * low.ellipse(low.u - 0.10 * cat.turn, low.v - 0.95, 0.3, 0.42, 0.25), colors["pale"])
    # Ears lean outwards by their tilt, one more than the other by their twist.
    height, half = 0.58 + 0.2 * cat.ear_height, (0.35 + 0.11 * cat.ear_width) * width
    top = canvas.between(-2.0, -0.1)
    lean = 0.16 + 0.36 * cat.ear_tilt + 0.16 * cat.ear_twist * np.sign(top.u)
    ear_v = top.v + 0.18
    ear_u = np.abs(top.u + 0.05 * cat.turn) - 0.45 * width + lean * ear_v
    top.paint(top.leaf(ear_u, ear_v, height, half), colors["ear"])
    inner = mix(rgb("e9a6a4"), colors["ear"], 0.35 if grumpy else 0.1)
    top.paint(0.9 * top.leaf(ear_u, ear_v + 0.05, height * 0.72, half * 0.62, soft=0.08), inner)
    # The head: skull, cheeks, and tufts on the cheeks and between the ears.
    cheek = 0.42 + 0.12 * cat.cheeks
    parts = [canvas.ellipse(u, v, width, crown), canvas.ellipse(beyond + cheek * 0.92, v - 0.17, cheek, 0.40)]
    for down, length in ((0.12, 0.8), (0.27, 1.0), (0.41, 0.75)):
        parts.append(canvas.leaf(v - down - 0.3 * beyond, -beyond - 0.12, (0.16 + 0.2 * cat.fluff) * length, 0.1))
    for across, length in ((-0.08, 0.8), (0.0, 1.0), (0.09, 0.75)):
        parts.append(canvas.leaf(u - across * (0.5 - v), v + crown - 0.04, (0.1 + 0.1 * cat.fluff) * length, 0.06))
    head = np.maximum.reduce(parts)
    # Rounded shading, and short hairs: a small random picture, stretched.
    noise = Image.frombytes("L", (40, 20), random.Random(cat.grain).randbytes(800))
    hairs = np.asarray(noise.resize(canvas.image.shape[1:], Image.Resampling.BICUBIC), np.float32) / 255 - 0.5
    shade = 1.03 + 0.10 * cat.light_x * u - 0.15 * v - 0.16 * (u * u + v * v) + 0.11 * hairs
    paint(head, np.asarray(colors["fur"], np.float32)[:, None, None] * shade)
    # Tabby stripes, for one cat in two: three on the forehead, two on each cheek.
    if cat.stripes > 0:
        stripes = [canvas.ellipse(face, v + 0.44, 0.035, 0.13, 0.03)]
        stripes.append(canvas.ellipse(far - 0.14 + 0.25 * (v + 0.42), v + 0.42, 0.035, 0.11, 0.03))
        for down in (0.10, 0.24):
            stripes.append(canvas.leaf(v - down - 0.1 * far, far - width + 0.02, 0.24, 0.04, soft=0.03))
        strength = min(1, 0.25 + cat.stripes) * (0.4 if grumpy else 0.8)
        paint(strength * head * np.maximum.reduce(stripes), colors["dark"])
    if grumpy:  # a dark mask from the eyes towards the ears and around the nose
        reach = 0.9 + 0.25 * cat.patch
        mask = canvas.ellipse(far - 0.34 + 0.45 * (v + 0.05), v + 0.07, 0.25 * reach, 0.33 * reach, 0.22)
        mask = np.maximum(mask, canvas.ellipse(face, v - 0.25, 0.24 * reach, 0.27 * reach, 0.22))
        paint(0.92 * mask * head, colors["dark"])


def draw_eyes(canvas: Canvas, cat: SimpleNamespace, colors: dict, grumpy: bool) -> None:
    """Draw both eyes at once: `outward` grows away from the nose in either eye, `eye_u` to the right."""
    canvas = canvas.between(-0.35, 0.3)
    paint, face = canvas.paint, canvas.u - 0.11 * cat.turn
    gap, radius = 0.295 + 0.05 * cat.eye_gap, 0.17 + 0.055 * cat.eye_size
    tall = radius * (0.86 + 0.14 * cat.eye_open)
    outward, eye_v = np.abs(face) - gap, canvas.v + 0.03
    eye_u = np.sign(face) * outward
    # The lid: high and arched on a gray cat, low and falling towards the nose on a grumpy one.
    level = 0.05 + 0.45 * cat.eye_open if grumpy else 0.68 + 0.37 * cat.eye_open
    slope, arch = (-0.34, 0.0) if grumpy else (-0.06, 1.4)
    lid = (-radius * level, slope, arch)
    rim = canvas.ellipse(outward, eye_v, radius * 1.14, tall * 1.14)
    lid_v = lid[0] + outward * (slope + arch * outward)
    ball = canvas.ellipse(outward, eye_v, radius, tall) * canvas.inside(eye_v - lid_v)
    paint(rim, colors["lid"])
    paint(ball, mix(colors["eye"], INK, 0.35))
    # The iris, lighter towards its lower edge; the pupil; the reflected light; the edge of the lid.
    look_u, look_v = eye_u - 0.22 * radius * cat.gaze_x, eye_v - 0.15 * radius * cat.gaze_y
    paint(ball * canvas.ellipse(look_u, look_v, radius * 0.9, tall * 0.92, 0.04), colors["eye"])
    paint(0.5 * ball * canvas.ellipse(look_u, look_v - 0.5 * tall, radius * 0.6, tall * 0.5, 0.1), WHITE)
    paint(ball * canvas.ellipse(look_u, look_v, radius * (0.22 + 0.4 * cat.pupil), tall * 0.7), INK)
    up = 0.0 if grumpy else 0.28 * radius
    paint(ball * canvas.ellipse(eye_u + 0.3 * radius, eye_v + up, radius * 0.24, radius * 0.24), WHITE)
    paint(rim * canvas.stroke(outward, eye_v, lid, -0.4, 0.4, 0.045 if grumpy else 0.035), INK)


def draw_muzzle(canvas: Canvas, cat: SimpleNamespace, colors: dict, grumpy: bool) -> None:
    """Draw chin and whisker pads, nose, mouth, whiskers."""
    canvas = canvas.between(0.0, 0.8)
    paint, face, v = canvas.paint, canvas.u - 0.14 * cat.turn, canvas.v
    far, pad, line = np.abs(face), 0.15 + 0.04 * cat.muzzle, mix(colors["dark"], INK, 0.7)
    # Chin and pads; a gray cat has red cheeks.
    paint(0.9 * canvas.ellipse(face, v - 0.48, pad * 0.8, 0.10, 0.06), colors["pale"])
    pale = mix(colors["dark"], colors["pale"], 0.45) if grumpy else colors["pale"]
    paint(0.9 * canvas.ellipse(far - pad * 0.8, v - 0.33, pad, 0.13, 0.06), pale)
    if not grumpy:
        paint(0.3 * canvas.ellipse(far - 0.47, v - 0.25, 0.12, 0.09, 0.12), rgb("f08a90"))
    # The nose: two nostrils above a point, and a reflection.
    size = 0.085 + 0.03 * cat.nose
    paint(canvas.inside(0.018 - far) * canvas.inside(np.minimum(v - 0.22, 0.35 - v)), line)
    paint(canvas.ellipse(far - 0.3 * size, v - 0.18, size * 0.75, size * 0.55), colors["nose"])
    paint(canvas.leaf(face, 0.18 - v, size * 1.25, size * 0.95), colors["nose"])
    paint(0.5 * canvas.ellipse(face + 0.3 * size, v - 0.165, size * 0.3, size * 0.16, 0.02), WHITE)
    # The mouth: a w with raised corners, or an arc that hangs down.
    if grumpy:
        curve, reach = (0.345, 0.0, 1.4 + 1.4 * cat.mouth), 0.25
    else:
        dip, cusp = 0.045 + 0.035 * cat.mouth, 0.21 + 0.04 * cat.mouth
        curve, reach = (0.345, 4 * dip / cusp, -4 * dip / cusp**2), 1.12 * cusp
    paint(canvas.stroke(far, v, curve, 0.0, reach, 0.036), line)
    # Whiskers, three on each side.
    for start, slope in ((0.28, -0.22), (0.33, 0.0), (0.38, 0.2)):
        end = 0.48 + 0.2 * cat.whiskers
        paint(0.75 * canvas.stroke(far - pad, v - start, (0.0, slope, 0.25), 0.05, end, 0.02, taper=0.6), WHITE)


def default_root(size: int) -> Path:
    """Return the folder of the cats of a size: data/toy_cats for 64, data/toy_cats_128 for 128 and so on."""
    return DEFAULT_ROOT if size == 64 else DEFAULT_ROOT.with_name(f"{DEFAULT_ROOT.name}_{size}")


def ensure_toy_cats(root: Path, size: int = 64, seed: int = 11, train: int = 200, test: int = 50) -> Path:
    """Draw the data set, `train` images of each domain and `test` pairs, unless it exists; return its folder.

    The folder appears whole or not at all; if several processes draw it at once, the first to finish wins. Raises
    UserError for an unknown size, or if `root` exists but is not this data set; it is then left as it is.
    """
    check_size(size)
    made_with: dict = {"format": FORMAT, "size": size, "seed": seed, "train": train, "test": test}
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
            folder, cats = Path(temporary) / root.name, {}
            for split, kind, domains in (("trainA", "train", "A"), ("trainB", "train", "B"), ("test", "test", "AB")):
                seeds = [f"{seed}/{split}/{index}" for index in range(made_with[kind])]
                cats[split] = {f"{i:03d}.png": random_attributes(random.Random(text)) for i, text in enumerate(seeds)}
                for domain in domains:
                    (folder / f"{kind}{domain}").mkdir(parents=True)
                    for name, attributes in cats[split].items():
                        image = draw_cat(attributes, domain, size)
                        image.save(folder / f"{kind}{domain}" / name, compress_level=1)  # twice as fast, 6% larger
            (folder / "attributes.json").write_text(json.dumps(made_with | {"cats": cats}) + "\n", encoding="utf-8")
            with contextlib.suppress(OSError):  # another process may have been faster
                folder.rename(root)
    check_toy_cats(root, made_with)
    return root


def check_toy_cats(root: Path, made_with: dict) -> None:
    """Raise UserError unless `root` holds the whole data set that `made_with` describes."""
    try:
        found = json.loads((root / "attributes.json").read_text(encoding="utf-8"))
        problems = [f"{key} {found[key]}, not {made_with[key]}" for key in made_with if found[key] != made_with[key]]
        if found["format"] != FORMAT:
            problems = ["another version of this project drew it"]
    except (OSError, ValueError, KeyError, TypeError):
        problems = ["no readable attributes.json"]
    names = [f"{split}{domain}/{i:03d}.png" for split in ("train", "test") for domain in "AB"
             for i in range(made_with[split])]  # fmt: skip
    problems += [f"no {name}" for name in names if not (root / name).is_file()]
    if problems:
        remedy = "rename or delete the folder, and it is drawn again"
        raise UserError(f"{root} is not the set of toy cats asked for ({shorten(problems, 2)}); {remedy}")


def check_size(size: int) -> None:
    """Raise UserError unless cats can be drawn at this size."""
    if size not in IMAGE_SIZES:
        raise UserError(f"size {size} is not one of {', '.join(map(str, IMAGE_SIZES))}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser("toy_cats.py", description="Draw the embedded data set of toy cats.")
    parser.add_argument("--size", type=int, default=64, choices=IMAGE_SIZES, help="width and height (default: 64)")
    parser.add_argument("--seed", type=int, default=11, help="other seeds give other cats (default: 11)")
    out_help = "folder to write (default: data/toy_cats, or data/toy_cats_SIZE)"
    parser.add_argument("--out", type=lambda text: Path(expand_home(text)), help=out_help)
    options = parser.parse_args(arguments)
    try:
        print(ensure_toy_cats(options.out or default_root(options.size), options.size, options.seed))
    except (OSError, UserError) as error:
        raise UserError(f"--out: {one_line(error, 1000)}") from None
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main, "toy_cats.py"))

"""The text of a demo page: hostile names stay text, the module of the runtime becomes a global variable."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pages.demo import Demo, Runtime, as_global, make_page

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u202e\"'"
MODULE = "/*! MIT */var a=1,b=2;export{a as Tensor,b as default};\n//# sourceMappingURL=a.mjs.map"


class Tags(HTMLParser):
    """Collects the tags of a page, and the texts of its scripts by id."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.open = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.open = dict(attrs).get("id", "") if tag == "script" else ""

    def handle_data(self, data) -> None:
        if self.open:
            self.scripts[self.open] = data
            self.open = ""


def page_of(name: str, directions: dict[str, str], latents: np.ndarray | None = None) -> Tags:
    demo = Demo(name, step=3, image_size=32, directions=directions, stride=4, credit=name)
    networks = {direction: b"network of " + direction.encode() for direction in directions}
    found = Tags()
    found.feed(make_page(demo, networks, Runtime("1.2", MODULE, b"binary"), latents))
    return found


def test_the_page_contains_networks_runtime_and_latents():
    latents = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    scripts = page_of("cats", {"z": "images"}, latents).scripts
    about = json.loads(scripts["about"])
    assert about | {"latents": ""} == {"name": "cats", "size": 32, "stride": 4, "seeds": 2, "latents": ""}
    assert np.frombuffer(base64.b64decode(about["latents"]), "<f4").tolist() == latents.ravel().tolist()
    assert base64.b64decode(scripts["network-z"]) == b"network of z"
    assert gzip.decompress(base64.b64decode(scripts["binary"])) == b"binary"


@pytest.mark.faults
@pytest.mark.parametrize("latents", [None, np.zeros((1, 4), np.float32)])
def test_hostile_names_add_no_tag(latents):
    plain, hostile = (page_of(text, {"X2Y": text, "Y2X": text}, latents) for text in ("cats", HOSTILE))
    assert hostile.tags == plain.tags and "img" not in plain.tags
    assert json.loads(hostile.scripts["about"])["name"] == HOSTILE.replace("\u202e", "\\u202e")
    control = Tags()
    control.feed(f"<p>{HOSTILE}</p>")
    assert "img" in control.tags


def test_a_module_becomes_a_global_variable():
    assert as_global(MODULE) == "/*! MIT */var a=1,b=2;globalThis.ort={Tensor:a,default:b};"
    with pytest.raises(ValueError, match="list of exports"):
        as_global("var a=1;")


def test_the_page_forbids_every_request():
    demo = Demo("cats", step=0, image_size=32, directions={"z": "images"}, stride=1, credit="")
    page = make_page(demo, {"z": b""}, Runtime("1.2", MODULE, b""), np.zeros((1, 4), np.float32))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none';") and "http" not in policy and "connect-src" not in policy
    assert not re.search(r'(src|href)="', page), "the page names no other file"

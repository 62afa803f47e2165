"""The templates of all pages."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def make_environment() -> Environment:
    """Return the templates; text from outside is escaped, and `raw(name)` is the content of a file as it is."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["raw"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment

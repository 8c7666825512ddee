"""Pages: HTML files that need nothing else, made from the templates in `templates/`.

Style, script and data are inside each file, so that it opens offline, from a double click, and asks nothing of anybody.
What a template prints is escaped: a class or a file whose name has HTML in it is text.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from mbnp.storage import replacing

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Return the page that `templates/template` makes of the values."""
    return _environment.get_template(template).render(**values)


def write(path: Path, page: str) -> None:
    """Write a page; an older file is replaced when the new one is complete. What UTF-8 cannot say is escaped."""
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def data_uri(image: Image.Image) -> str:
    """Return an image as what may stand in `src`."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _script_data(value: Any) -> Markup:
    """Return JSON that may stand in a <script> element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _inline(name: str) -> Markup:
    """Return a file of `templates/` as it is: a script or a style of our own."""
    assert _environment.loader is not None
    return Markup(_environment.loader.get_source(_environment, name)[0])


_environment.filters["script_data"] = _script_data
_environment.globals["inline"] = _inline

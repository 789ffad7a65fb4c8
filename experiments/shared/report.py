"""One page to look at per run: the table, the figures, the options and the command that made it.

The page needs no network and no other file: figures are part of it.
"""

from __future__ import annotations

import base64
import dataclasses
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
from jinja2 import Environment

from experiments.shared.findings import Result
from experiments.shared.options import RunConfig, name_option
from jaxrnn.files import write_atomically

FILE = "report.html"
_IMAGES = {".png": "image/png", ".gif": "image/gif"}
_TEXTS = (".txt", ".csv")
_MOST_SHOWN = 20_000  # characters of a text file
_HIDDEN = ("findings.csv",)  # which the table shows

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-top: 1px solid #ddd; }
.small { color: #666; font-size: .875rem; }
.holds { color: #00704e; font-weight: 600; } .refuted { color: #b34700; font-weight: 600; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; white-space: pre-wrap; }
code { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p><code>{{ command }}</code></p>
{% if findings %}
<table>
<tr><th></th><th>claim</th><th>measured</th><th>verdict</th></tr>
{% for finding in findings %}
<tr><td>{{ finding.name }}</td>
<td>{{ finding.claim }}<br><span class="small">holds if {{ finding.criterion }}</span></td>
<td>{{ finding.measured }}</td>
<td class="{{ 'holds' if finding.holds else 'refuted' }}">{{ finding.verdict }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if text %}<h2>Output</h2><pre>{{ text }}</pre>{% endif %}
{% for name, address in images %}
<h2>{{ name }}</h2><img src="{{ address }}" alt="{{ name }}">
{% endfor %}
{% for name, content in texts %}
<h2>{{ name }}</h2><pre>{{ content }}</pre>
{% endfor %}
<h2>Options</h2>
<table>
{% for name, value in options %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
<p class="small">{{ versions }}</p>
</body>
</html>
"""


def write_report(
    folder: Path, title: str, arguments: Sequence[str], config: RunConfig, result: Result
) -> None:
    """Write report.html from what `run` returned and what its folder holds by now."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [
        (path.name, f"data:{_IMAGES[path.suffix]};base64,{_encode(path)}")
        for path in files
        if path.suffix in _IMAGES
    ]
    texts = [
        (path.name, _read_start(path))
        for path in files
        if path.suffix in _TEXTS and path.name not in _HIDDEN
    ]
    options = [
        (name_option(field.name), getattr(config, field.name))
        for field in dataclasses.fields(config)
    ]
    page = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    html = page.render(
        title=title,
        command=shlex.join(["python", "-m", "experiments", *arguments]),
        findings=result.findings,
        text=result.text,
        images=images,
        texts=texts,
        options=options,
        versions=f"jax {jax.__version__}, Python {platform.python_version()}, {platform.machine()}",
    )
    write_atomically(folder / FILE, html.encode())


def _encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _read_start(path: Path) -> str:
    text = path.read_text("utf-8")
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "\n..."

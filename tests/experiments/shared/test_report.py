"""The page of a run: what it holds, and that a browser shows it without a network."""

import dataclasses
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments.shared.figures import saved_figure
from experiments.shared.findings import Finding, Result
from experiments.shared.options import RunConfig
from experiments.shared.report import FILE, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
FINDINGS = [
    Finding("first", "1 < 2 & <b>bold</b>", "it is so", "it is", True),
    Finding("second", "2 < 1", "it is so", "it is not", False),
]


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options."""

    some_size: int = 3


@pytest.fixture
def page(tmp_path):
    for name in ("a.png", "b.png"):
        with saved_figure(tmp_path / name, (3.0, 2.0)) as figure:
            figure.subplots().plot(np.arange(5))
    (tmp_path / "samples.txt").write_text("<i>It was</i>\n\n  a night\n")
    (tmp_path / "findings.csv").write_text("not, shown\n")
    (tmp_path / "metrics.json").write_text("{}")
    arguments = ["some", "--prompt", "It was"]
    result = Result({}, FINDINGS, "more text")
    write_report(tmp_path, "A title & more", arguments, Config(some_size=4), result)
    return tmp_path / FILE


def test_the_page_has_the_table_the_figures_the_samples_the_options_and_the_command(page):
    html = page.read_text("utf-8")
    assert "<title>A title &amp; more</title>" in html
    assert "python -m experiments some --prompt &#39;It was&#39;" in html
    assert "1 &lt; 2 &amp; &lt;b&gt;bold" in html
    assert html.count('class="holds"') == 1
    assert html.count('class="refuted"') == 1
    assert html.count('src="data:image/png;base64,') == 2
    assert "&lt;i&gt;It was&lt;/i&gt;\n\n  a night" in html
    assert "<td>--some-size</td><td>4</td>" in html
    assert "not, shown" not in html
    assert "more text" in html


def test_the_page_asks_for_nothing_but_itself(page):
    html = page.read_text("utf-8")
    assert "<script" not in html
    addresses = re.findall(r'(?:src|href)="([^"]{0,20})', html)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_shows_the_page_with_its_figures(page, tmp_path):
    probe = """<script>addEventListener("load", () => { document.title =
        [...document.images].map(image => image.naturalWidth).join() + ";"
        + document.querySelectorAll("tr").length + ";"
        + (document.documentElement.scrollWidth <= innerWidth) })</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text("utf-8").replace("</body>", probe + "</body>"), "utf-8")
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,800"),
            *("--virtual-time-budget=5000", "--dump-dom", probed.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    widths, rows, fits = title.split(";")
    assert [int(width) for width in widths.split(",")] == [450, 450]  # 3 inches of 150 dots
    assert int(rows) == 1 + len(FINDINGS) + 3  # seed, folder and the size
    assert fits == "true"

"""axe-core finds no fault with the pages, in light, dark and print.

Needs Chromium, and axe.min.js of axe-core: from ``npm install axe-core`` in
the repository, or where AXE_CORE says.
"""

import json
import os
import pathlib
import re
import subprocess

import pytest

from tests import browser
from tests.report import pages

ROOT = pathlib.Path(__file__).parents[2]
AXE = pathlib.Path(
    os.environ.get("AXE_CORE", ROOT / "node_modules/axe-core/axe.min.js")
)
# 0 is dark, 1 light
SCHEMES = {"light": 1, "dark": 0}
RUN = """<pre id="axe"></pre><script>axe.run().then(found => {
document.getElementById("axe").textContent = "AXE" + JSON.stringify(
found.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html)])) + "AXE"})
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason=f"there is no {AXE} (axe-core)")
@pytest.mark.skipif("not browser.starts()", reason="Chromium does not start")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["run", "rounds", "clusters"])
def test_axe_finds_no_violation(name, scheme, tmp_path):
    text = pages.write(name, tmp_path).read_text(encoding="utf-8")
    script = f"<script>{AXE.read_text(encoding='utf-8')}</script>{RUN}"
    page = tmp_path / "with_axe.html"
    page.write_text(text.replace("</body>", script + "</body>"))
    done = subprocess.run(
        [
            *(browser.CHROMIUM, *browser.FLAGS),
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            *("--virtual-time-budget=20000", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search("AXE(.*)AXE", done.stdout.split('<pre id="axe">')[-1])
    assert found, done.stderr[-2000:]
    assert json.loads(found.group(1)) == []

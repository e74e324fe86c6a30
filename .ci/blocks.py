"""Print the n-th fenced shell block of a Markdown file."""

import re
import sys
from pathlib import Path

blocks = re.findall(r"^```(?:sh|bash|shell)\n(.*?)^```", Path(sys.argv[1]).read_text(), re.M | re.S)
sys.stdout.write(blocks[int(sys.argv[2]) - 1])

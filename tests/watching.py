"""Which files of a project stages open, as the interpreter tells it.

The code of a stage may run in a process that was forked from a warm one, so every interpreter that
is started with `Clone.environment` has an audit hook from its start on. Libraries in other
languages open files without it: weights and the index of captions are not seen.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

HOOK = """\
import os, sys
root, log = {root!r}, os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and "DVC_STAGE" in os.environ:
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(root):
            os.write(log, (os.environ["DVC_STAGE"] + "\\t" + path + "\\n").encode())

sys.addaudithook(note)
"""


class Watch:
    """Notes the files below `root` that each stage opens."""

    def __init__(self, root: Path, folder: Path) -> None:
        """Puts the hook into the empty `folder`, which lies beside `root`."""
        self.root, self.log = root, folder / "opened.txt"
        self.folder = folder
        hook = HOOK.format(root=f"{root}/", log=str(self.log))
        (folder / "sitecustomize.py").write_text(hook, encoding="utf-8")

    def opened(self) -> dict[str, set[str]]:
        """By the address of a stage: paths from the root, sources in place of compiled files."""
        found: dict[str, set[str]] = defaultdict(set)
        for line in self.log.read_text(encoding="utf-8").splitlines():
            stage, path = line.split("\t")
            file = Path(path)
            if file.parent.name == "__pycache__":
                file = file.parents[1] / f"{file.name.split('.')[0]}.py"
            found[stage].add(file.relative_to(self.root).as_posix())
        return found

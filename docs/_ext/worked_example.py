"""The directive ``worked-example``: a script of ``docs/examples`` is run, and what it prints and draws is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


class WorkedExample(SphinxDirective):
    """``.. worked-example:: poisson`` runs ``docs/examples/poisson.py PICTURE``."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged_required}
    shown: ClassVar[bool] = True  # by the builder; that of the doctests does not look at it

    def run(self) -> list[nodes.Node]:
        """The text, then the picture."""
        if not self.shown:
            return []
        script = Path(self.env.srcdir) / "examples" / f"{self.arguments[0]}.py"
        picture = Path(self.env.doctreedir) / f"{script.stem}.png"
        self.env.note_dependency(str(script))
        # This tree's jacfn; one thread, as these arrays are small and many cores differ in the last digit.
        settings = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(picture)]
        ran = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, **settings})
        if ran.returncode:
            raise self.error(f"{script.name} failed:\n{ran.stderr}")
        page = Path(self.env.doc2path(self.env.docname))
        text = nodes.literal_block(ran.stdout, ran.stdout, language="text")
        return [text, nodes.image(uri=os.path.relpath(picture, page.parent), alt=self.options.get("alt", ""))]


def _look_at_builder(app: Any) -> None:
    WorkedExample.shown = app.builder.format == "html"


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("worked-example", WorkedExample)
    app.connect("builder-inited", _look_at_builder)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

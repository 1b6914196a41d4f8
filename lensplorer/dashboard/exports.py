"""What a panel gives away: its script, its data, and a page of its own."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensplorer.dashboard.asking import python
from lensplorer.dashboard.panels import PANELS
from lensplorer.errors import LensplorerError, did_you_mean

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

#: format → media type of the file. SVG and PNG are made in the browser, of what it shows.
FORMATS = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "html": "text/html", "py": "text/x-python"}
_MOST_BYTES = 32 * 2**20


def script_of(explorer: Explorer, name: str) -> str:
    """Python that gives the numbers on screen."""
    return python(explorer, explorer.asked_by(name), PANELS[name].title)


def exported(explorer: Explorer, name: str, kind: str) -> dict[str, Any]:
    """A file of what the panel shows: ``{name, type, data}``, the data in base64.

    Raises:
        LensplorerError: an unknown format, nothing on screen, or more than the browser should be sent.
    """
    if kind not in FORMATS:
        raise LensplorerError(f"Unknown format {kind!r}.{did_you_mean(kind, FORMATS)}")
    if kind == "py":
        data = script_of(explorer, name).encode()
    else:
        from lensplorer.formats.figures import export_figure
        from lensplorer.formats.tables import export_table

        result = explorer.asked_by(name)[0].value(explorer)  # asked anew: what is on screen may have been put together position by position
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.{kind}"
            if kind == "html":
                export_figure(result, path, theme=explorer.state.theme, title=PANELS[name].title)
            else:
                export_table(result, path)
            data = path.read_bytes()
    if len(data) > _MOST_BYTES:
        raise LensplorerError(f"The file has {len(data) / 2**20:.0f} MB: copy the panel's Python and write it from there.")
    return {"name": f"lensplorer-{name}.{kind}", "type": FORMATS[kind], "data": base64.b64encode(data).decode()}

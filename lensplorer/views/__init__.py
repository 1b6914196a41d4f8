"""Views: every picture is a pure function of an analysis' result.

``draw(result)`` returns a HoloViews element for any result of ``lensplorer.analyses``.
"""

from __future__ import annotations

from lensplorer.views.base import draw

__all__ = ["draw"]

"""The HTTP door: the endpoints of the next-token visualization, one per analysis, the loading of models, and the dashboard beside them.

``settings`` (what is allowed, and how much) → ``app`` (``create_app``) → ``generation`` and ``analyses`` (the endpoints, whose bodies are
described in ``schemas``) → the library. Nothing here computes: an endpoint turns JSON into a call and a result into JSON. ``models`` holds the
model that answers, ``queue`` lets one request run at a time, ``security`` and ``limits`` stand before everything.
"""

from lensplorer.server.settings import ServerSettings

__all__ = ["ServerSettings"]

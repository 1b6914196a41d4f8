"""The page, for ``panel serve dashboards/explorer.py --args [OPTIONS]``; ``lensplorer explore [OPTIONS]`` serves the same."""

import sys

from lensplorer.dashboard.page import page_of_arguments

page_of_arguments(sys.argv[1:]).servable(location=False)  # Panel would read numbers out of the query, which fails for a long one

"""Branch and bound, the search loop's public face.

The loop itself is :mod:`lipschitz.search.loop`. It works with any :class:`Bounding`: an object that
bounds, splits and settles subdomains. :func:`bound_by_branching` is the loop with everything that
the library has plugged in.
"""

from lipschitz.search.interface import Bounding, Limits, Progress, Report, SearchResult
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.options import BranchOptions
from lipschitz.search.run import bound_by_branching

__all__ = [
    "Bounding",
    "BranchOptions",
    "Limits",
    "Progress",
    "Report",
    "SearchResult",
    "bound_by_branching",
    "branch_and_bound",
]

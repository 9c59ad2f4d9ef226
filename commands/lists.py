"""``--list-models`` and ``--list-data``."""

from __future__ import annotations

from argparse import Namespace

from utils import importing


def print_lists(args: Namespace) -> bool:
    """Print the networks and data sets that `--list-models` and `--list-data` ask for.

    Returns:
        Whether either was asked for: then there is nothing else to do.
    """
    if not (args.list_models or args.list_data):
        return False
    with importing():
        from data import list_data
        from models import list_models
    entries = [*(list_models() if args.list_models else ())]
    entries += list_data() if args.list_data else ()
    print("\n".join(map(str, entries)))
    return True

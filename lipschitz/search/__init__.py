"""Branch and bound: the loop, what it keeps, and what each engine plugs in.

``options`` says what can be asked, ``run`` answers it: it bounds the root, chooses what is split
and when semidefinite programs take part (``with_programs``), and hands both to ``loop``. The loop
knows only ``interface``; its memory is ``state``, whose open subdomains are in ``pool``.
``subdomains`` says what a subdomain is, ``splits`` and ``heuristics`` how one becomes two.
``engines`` has a file for each thing that can be searched, ``subdomain_bounds`` what bounds
subdomains by linear relaxation.
"""

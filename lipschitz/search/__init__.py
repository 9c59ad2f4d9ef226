"""Branch and bound: the loop, its state, and the engines that it searches with.

``options`` holds the user's options and checks them. ``run`` is where a search starts: it bounds
the whole box (the root), chooses what is split, and makes the engine for it; ``boxes_first`` begins
with cuts of the box where these are cheap, ``trials`` compares two searches, ``with_programs``
decides whether semidefinite programs take part. ``curvature`` is the start for norms of Hessians.
``loop`` is the best-first loop. It knows an engine only through ``interface``. ``state`` keeps the
best lower bound and the bounds of subdomains that are closed, ``pool`` the open subdomains.
``subdomains`` says what is stored of a subdomain, ``heuristics`` picks the variable to split,
``splits`` makes the two children. ``engines`` has a file for each way of splitting and bounding,
``subdomain_bounds`` the linear relaxations of subdomains that engines share.
"""

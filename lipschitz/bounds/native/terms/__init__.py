"""Bounds of a network and its derivatives as one graph of values.

``gradient`` makes the graph. ``intervals`` bounds every value by interval arithmetic, ``forward``
by affine forms, where there are few inputs, and ``narrowing`` by rows of whatever products and
functions read. ``relaxations`` has the lines and planes around nonlinear terms, ``contractions``
those around matrix products of values, ``backward`` is the pass of rows through them, ``corners``
and ``linear`` choose their weights. ``jacobian`` is interval arithmetic of the Jacobian alone.
"""

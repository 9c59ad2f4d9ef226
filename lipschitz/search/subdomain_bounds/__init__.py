"""Linear bounds of many subdomains at once: cheap for children, full CROWN for the largest.

Of boxes of few inputs with fixed signs: ``zonotopes`` for values and gradients, ``zonotope_norms``
for their norms, ``halfspaces`` for what the signs say about the inputs.
"""

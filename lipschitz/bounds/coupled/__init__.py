"""Bounds of pre-activations that keep the neurons of a layer together, by quadratic terms.

Lines around each activation let every neuron of a layer go to its own worst place, although no
point of the box takes all of them there. Here a neuron that moves away from its value at the centre
pays for it with a multiple of the square of its move, and what all of them pay together is bounded
by what the box, or the layer before, can afford: the dual of a semidefinite program, one for each
pre-activation, passed back through the network like the rows of linear bound propagation.

``chain`` reads a network as matrices with activations between, ``elementwise`` bounds what one
neuron contributes, ``descent`` looks for good multipliers, ``certificate`` makes any multipliers a
proved bound, and ``root`` puts the resulting intervals in place of looser ones.
"""

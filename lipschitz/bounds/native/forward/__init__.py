"""Backward from a neuron to the input: bounds of pre-activations."""

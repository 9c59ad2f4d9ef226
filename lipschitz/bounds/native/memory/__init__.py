"""Rows of coefficients in little memory: chunks that fit, and windows of images."""

"""Rows of coefficients in little memory and time.

``budget`` says how much fits, ``windows`` keeps only the part of an image that a row touches,
``effort`` foretells what a pass of rows costs, ``tiles`` cuts rows into chunks of neighbours by
that, and ``depth`` ends rows early where all the way would take too long; ``differences`` has rows
of two entries each.
"""

"""Engines of the loop (``interface.Bounding``), one file for each way of splitting and bounding.

Beside them are parts of ``inputs``, the engine that cuts the box: ``curved_boxes`` bounds boxes by
affine forms and planes, ``trends`` finds their sides that matter, ``climbing`` looks for witnesses.
"""

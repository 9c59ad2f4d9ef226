"""Engines of the loop (``interface.Bounding``), one file for each way of splitting and bounding.

Beside them are parts of ``inputs``, the engine that cuts the box: ``curved_boxes`` bounds boxes by
affine forms and planes, ``trends`` finds their sides that matter, ``climbing`` looks for witnesses.
``regions``, the engine that does both where inputs are few, has ``region_boxes`` for what it
splits, ``split_gains`` for which kind of split gains more, ``linked_signs`` for neurons that are
the same function, and ``exact_rows`` for regions without inner points.
"""

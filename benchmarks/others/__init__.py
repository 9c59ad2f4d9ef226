"""The scoreboard on networks that others trained: ``python -m benchmarks.others``.

In the order in which they run:

- ``manifest.py``: what networks a folder holds, their boxes and published values; ``box.py``: the
  numbers of a box.
- ``process.py``: a job in a process of its own, with a memory limit; ``worker.py``: its other side.
- ``library.py``: bounds by the library. ``attack.py`` with ``evaluator.py`` and
  ``onnx_evaluator.py``: true gradients in float64 by code that imports nothing of the library.
- ``rows.py``: the CSV file, one row a box and method; ``verdicts.py``: ratios, means and what is
  wrong; ``report.py``: the Markdown and the picture.
"""

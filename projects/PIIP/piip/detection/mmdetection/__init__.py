"""Mask R-CNN trained by the rules of mmdetection 2.25, which the released detectors were trained by.

What they are and what each is worth stands in docs/differences.md; :mod:`.rules` chooses.
"""

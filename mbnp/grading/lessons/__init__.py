"""The exercises of the lessons as data: `lesson_NN.py` has cases, right answers and known mistakes of lesson NN.

golden/NN.npz holds what PyTorch computed for the cases (made by tests/grading/make_golden.py), so that grading needs no
PyTorch.
"""

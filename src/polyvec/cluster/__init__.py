"""Groups of texts: by scikit-learn's algorithms, and with what a language model says of them.

A clustering is vectors, an algorithm and a list of feedback: what a language model is asked, about
which texts, and what its answers change. N texts, E dimensions, K groups.
"""

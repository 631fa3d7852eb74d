"""Reading and comparing mathematical answers, without evaluating anything as code.

``judge.compare_answers`` is the way in. A text is cleaned (`clean`), cut into tokens (`lexer`), read into a tree
(`parser`), and compared with another tree (`compare`) by shape, exact value (`exact`), and value at high precision
(`numeric`). Every limit counts operations (`budget`), never seconds.
"""

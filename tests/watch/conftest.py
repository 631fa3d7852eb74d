from tests.train.conftest import addition_file, make_recipe

__all__ = ["addition_file", "make_recipe"]

"""User errors in one line, and the closest known name."""

from lipschitz.errors import InputError, first_line, suggest


def test_an_error_is_one_line():
    assert str(InputError("eps -1:\n  expected 0 or more")) == "eps -1: expected 0 or more"


def test_suggest_finds_the_closest_name_in_any_case():
    names = ["simple_mlp_3layer", "mnist_cnn_4layer", "MNIST"]
    assert suggest("simple_mlp_3layr", names) == ": did you mean 'simple_mlp_3layer'?"
    assert suggest("mnst", names) == ": did you mean 'MNIST'?"
    assert suggest("resnet", names) == ""


def test_first_line_of_a_message_or_the_type():
    assert first_line(RuntimeError("shapes differ\nat line 3")) == "shapes differ"
    assert first_line(AssertionError()) == "AssertionError"

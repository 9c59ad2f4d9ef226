"""Scores and choices."""

import dataclasses

import pytest
import torch

from lipschitz.errors import InputError
from lipschitz.search.heuristics import SplitFacts, area_score, babsr_score, chooser, slope_score
from lipschitz.words import HEURISTICS


def facts(**changes) -> SplitFacts:
    """Two neurons with g in [-1, 3] and [-2, 1], two entries; integers to check by hand."""
    example = SplitFacts(
        coefficient=torch.tensor([[2.0, -3.0]]),
        cotangent_lower=torch.tensor([[-1.0, -2.0]]),
        cotangent_upper=torch.tensor([[3.0, 1.0]]),
        slope_range=torch.tensor([[1.0, 1.0]]),
        splittable=torch.tensor([[True, True]]),
        entry_gap=torch.tensor([[0.5, 0.25]]),
    )
    return dataclasses.replace(example, **changes)


def test_scores_by_hand():
    assert slope_score(facts()).tolist() == [[6.0, 6.0]]
    assert area_score(facts()).tolist() == [[2 * (9 + 1.0), 3 * (1 + 4.0)]]
    assert babsr_score(facts()).tolist() == [[2 * 3 / 4, 3 * 2 / 3]]


def test_a_decided_neuron_scores_nothing():
    decided = facts(slope_range=torch.zeros(1, 2))
    for score in (slope_score, area_score, babsr_score):
        assert not score(decided).any()


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_choices(heuristic):
    choose = chooser(heuristic)
    assert int(choose(facts())) in (0, 1)
    only_second = facts(splittable=torch.tensor([[False, True]]))
    assert int(choose(only_second)) == 1
    no_neuron = facts(splittable=torch.zeros(1, 2, dtype=torch.bool))
    assert int(choose(no_neuron)) == 2  # the entry with the larger gap
    leaf = dataclasses.replace(no_neuron, entry_gap=torch.zeros(1, 2))
    assert int(choose(leaf)) == -1


def test_entries_compete_only_where_asked():
    wide = facts(entry_gap=torch.tensor([[100.0, 0.0]]))
    assert int(chooser("sign")(wide)) == 2
    for heuristic in ("slope", "area", "babsr"):
        assert int(chooser(heuristic)(wide)) in (0, 1)


@pytest.mark.parametrize("heuristic", ["area", "babsr"])
def test_a_gap_that_the_score_does_not_see_is_no_leaf(heuristic):
    """A constant g has neither area nor intercept, but an open slope."""
    constant = facts(cotangent_lower=torch.ones(1, 2), cotangent_upper=torch.ones(1, 2))
    assert int(chooser(heuristic)(constant)) in (0, 1)


def test_unknown_heuristic():
    with pytest.raises(InputError, match="did you mean 'slope'"):
        chooser("slop")

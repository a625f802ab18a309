"""From labels of pairs to a ranking of all answers: a Bradley–Terry model by maximum likelihood."""

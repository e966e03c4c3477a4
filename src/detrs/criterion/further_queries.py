"""Further queries in training, for more matches per object (H-DETR, arXiv 2207.13080; Group DETR, 2207.13085)."""

import torch

from detrs.config.criterion import OneToMany
from detrs.criterion.set_criterion import SetCriterion
from detrs.structures import Losses, Prediction, Predictions, Queries, Target, Totals


class Groups:
    """The losses of groups of further queries.

    Args:
        config: number of groups, queries and repeats, and the weight.
    """

    def __init__(self, config: OneToMany) -> None:
        self.config = config
        self.number = config.groups * config.queries

    def losses(
        self, criterion: SetCriterion, layers: tuple[Prediction, ...], targets: tuple[Target, ...], totals: Totals
    ) -> Losses:
        """The mean over groups, each matched with all objects ``repeats`` times.

        Args:
            criterion: matches and scores.
            layers: predictions of the further queries, of each decoder layer.
            targets: objects of each image.
            totals: as in ``SetCriterion``.

        Returns:
            The weighted total and the terms ``class_one_to_many``, ...; ``class_one_to_many_0``, ... before the last
            layer.
        """
        config = self.config
        repeated = tuple(
            target._replace(boxes=target.boxes.repeat(config.repeats, 1), labels=target.labels.repeat(config.repeats))
            for target in targets
        )
        totals = totals._replace(objects=totals.objects * config.repeats)
        found = [
            criterion(Predictions(parts(layers, slice(start, None, config.groups)), None), repeated, totals)
            for start in range(config.groups)
        ]
        total = torch.stack([each.total for each in found]).mean()
        terms = {named(name): torch.stack([each.terms[name] for each in found]).mean() for name in found[0].terms}
        return Losses(config.weight * total, terms)


def parts(layers: tuple[Prediction, ...], index: slice) -> tuple[Prediction, ...]:
    """The predictions of some queries, of each layer."""
    return tuple(layer.part(index) for layer in layers)


def named(term: str) -> str:
    """``class_0`` as ``class_one_to_many_0``."""
    name, _, layer = term.partition("_")
    return f"{name}_one_to_many{layer and '_'}{layer}"


def with_groups(queries: Queries, further: Queries, groups: int) -> Queries:
    """Both, one after the other; query f of ``further`` is of group f mod ``groups``, which attends to itself only."""
    first, count = queries.content.shape[1], further.content.shape[1]
    group = torch.arange(count, device=queries.content.device) % groups
    own = queries.attention_mask
    images = () if own is None else own.shape[:-2]
    mask = torch.zeros(*images, first + count, first + count, dtype=torch.bool, device=group.device)
    mask[..., :first, :first] = True if own is None else own
    mask[..., first:, first:] = group[:, None] == group
    return Queries(
        torch.cat([queries.content, further.content.to(queries.content.dtype)], dim=1),
        torch.cat([queries.position, further.position.to(queries.position.dtype)], dim=1),
        torch.cat([queries.reference, further.reference.to(queries.reference.dtype)], dim=1),
        mask,
    )

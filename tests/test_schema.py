"""Settings as plain data and back, and the range of every number."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from annotated_types import Ge, Gt, Le, Lt

from detrs import config
from detrs.backbones.timm import BackboneConfig
from detrs.classification import Focal, Softmax
from detrs.config import EvaluationConfig, Experiment, OptimizerConfig, RuntimeConfig, ScheduleConfig
from detrs.config.criterion import ContrastiveDenoising, GroupDenoising, NoDenoising, OneToMany, OneToOne
from detrs.config.dino import DINOConfig
from detrs.config.models import MODELS
from detrs.criterion.set_criterion import CriterionConfig
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.models.detr import DETRConfig
from detrs.schema import check, describe, from_dict, to_dict

EXPERIMENTS = {
    **{kind.__name__: Experiment(model=kind()) for kind in MODELS},
    "DETRConfig, Focal": Experiment(model=DETRConfig(classification=Focal())),
    **{
        f"DINOConfig, {kind.__name__}": Experiment(model=DINOConfig(), criterion=CriterionConfig(denoising=kind()))
        for kind in (GroupDenoising, ContrastiveDenoising)
    },
    "DINOConfig, OneToMany": Experiment(model=DINOConfig(), criterion=CriterionConfig(assignment=OneToMany())),
}
"""Together they have every configuration class."""
CLASSES = {
    *{Experiment, DataConfig, CriterionConfig, OptimizerConfig, ScheduleConfig, EvaluationConfig, RuntimeConfig},
    *{BackboneConfig, Focal, Softmax, NoDenoising, GroupDenoising, ContrastiveDenoising, OneToOne, OneToMany},
    *MODELS,
}
ANY_NUMBER = {"model.backbone.mean", "model.backbone.stages"}
"""Settings with finite numbers of any size; the backbone refuses stages that it does not have."""


class Setting(NamedTuple):
    """One field of one section."""

    path: tuple[str, ...]
    hint: Any
    value: Any

    @property
    def name(self) -> str:
        return ".".join(self.path)


class Number(NamedTuple):
    """One number of a setting."""

    kind: type
    limits: list[Any]
    index: int | None
    """Position in a tuple."""


def sections(values: Any) -> Iterator[Any]:
    yield values
    for field in dataclasses.fields(values):
        if dataclasses.is_dataclass(value := getattr(values, field.name)):
            yield from sections(value)


def settings(values: Any, *path: str) -> Iterator[Setting]:
    """All settings of an experiment, without its sections."""
    hints = typing.get_type_hints(type(values), include_extras=True)
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, *path, field.name)
        else:
            yield Setting((*path, field.name), hints[field.name], value)


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def is_optional(hint: Any) -> bool:
    return is_union(hint) and type(None) in typing.get_args(hint)


def numbers(hint: Any, index: int | None = None) -> Iterator[Number]:
    """The numbers that a type can hold."""
    if is_union(hint):
        for option in typing.get_args(hint):
            yield from numbers(option, index)
    elif typing.get_origin(hint) is tuple:
        for position, item in enumerate(item for item in typing.get_args(hint) if item is not Ellipsis):
            yield from numbers(item, position)
    elif typing.get_origin(hint) is Annotated:
        yield Number(hint.__origin__, list(hint.__metadata__), index)
    elif hint in (int, float):
        yield Number(hint, [], index)


def put(values: Any, path: tuple[str, ...], value: Any, index: int | None = None) -> Any:
    """``values`` with another value of one setting, or of one number in it."""
    if path:
        return replace(values, **{path[0]: put(getattr(values, path[0]), path[1:], value, index)})
    if index is None:
        return value
    values = values or (1.0, 1.0)  # of a pair that is None
    return (*values[:index], value, *values[index + 1 :])


def edges(number: Number, limit: Any) -> tuple[Any, Any]:
    """The value nearest to a limit outside of the range, and the one inside."""
    bound = next(iter(dataclasses.asdict(limit).values()))
    up = isinstance(limit, Gt | Le)
    if number.kind is int:
        beyond: Any = bound + (1 if up else -1)
    else:
        bound, beyond = float(bound), math.nextafter(bound, math.inf if up else -math.inf)
    return (beyond, bound) if isinstance(limit, Ge | Le) else (bound, beyond)


LIMITS = {
    f"{setting.name}{'' if number.index is None else f'[{number.index}]'} {limit} of {name}": (
        experiment,
        setting,
        number,
        limit,
    )
    for name, experiment in EXPERIMENTS.items()
    for setting in settings(experiment)
    for number in numbers(setting.hint)
    for limit in number.limits
}


def test_these_are_all_configuration_classes() -> None:
    assert {type(section) for each in EXPERIMENTS.values() for section in sections(each)} == CLASSES
    for experiment in EXPERIMENTS.values():
        check(experiment)


def test_every_number_has_a_range() -> None:
    bare = {
        setting.name
        for experiment in EXPERIMENTS.values()
        for setting in settings(experiment)
        for number in numbers(setting.hint)
        if not number.limits
    }
    assert bare == ANY_NUMBER
    assert len(LIMITS) > 100


@pytest.mark.parametrize("limit", LIMITS)
def test_the_edges_of_every_range(limit: str) -> None:
    experiment, setting, number, bound = LIMITS[limit]
    outside, inside = edges(number, bound)
    check(put(experiment, setting.path, inside, number.index))
    with pytest.raises(UserError) as error:
        config.validate(put(experiment, setting.path, outside, number.index))
    assert str(error.value).startswith(f"{setting.name} is ") and str(error.value).count(". ") == 0
    assert describe(number.limits) in str(error.value)


def test_numbers_that_are_not_finite_are_refused() -> None:
    refused = 0
    for experiment in EXPERIMENTS.values():
        for setting in settings(experiment):
            for number in numbers(setting.hint):
                for bad in (math.nan, math.inf, -math.inf) if number.kind is float else ():
                    with pytest.raises(UserError, match=f"^{setting.name} is .* must be finite") as error:
                        config.validate(put(experiment, setting.path, bad, number.index))
                    assert str(bad) in str(error.value)
                    refused += 1
    assert refused > 200


def test_none_is_accepted_where_it_has_a_meaning() -> None:
    optional = set()
    for setting in settings(Experiment()):
        if is_optional(setting.hint):
            experiment = put(Experiment(), setting.path, None)
            config.validate(experiment)
            assert from_dict(Experiment, json.loads(json.dumps(to_dict(experiment)))) == experiment
            optional.add(setting.name)
        elif list(numbers(setting.hint)):
            values = changed(*setting.path, value=None)
            with pytest.raises(UserError, match=f"^experiment.{setting.name}: expected .*, got None\\.$"):
                from_dict(Experiment, values)
    assert optional == {
        "name",
        "initial",
        "model.backbone.norm_eps",
        "model.backbone.pad_type",
        "model.classification.cost_weight",
        "data.path",
        "data.val_fraction",
        "data.large_scale_jitter",
        "data.padded_together",
        "optimizer.clip_norm",
        "optimizer.ema_decay",
        "schedule.max_minutes",
        "evaluation.every_steps",
        "evaluation.batch_size",
        "evaluation.nms",
        "evaluation.patience",
        "runtime.threads",
    }


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([Ge(1)], "at least 1"),
        ([Gt(0)], "above 0"),
        ([Le(3)], "at most 3"),
        ([Lt(0.5)], "below 0.5"),
        ([Ge(0), Lt(1)], "in [0, 1)"),
        ([Gt(0), Le(1)], "in (0, 1]"),
        ([Ge(0), Lt(2**63)], "in [0, 2^63)"),
    ],
)
def test_ranges_in_words(limits: list[Any], words: str) -> None:
    assert describe(limits) == words


@dataclasses.dataclass(frozen=True)
class Sized:
    size: tuple[int, int] = (2, 3)


@dataclasses.dataclass(frozen=True)
class Outer:
    section: Sized = dataclasses.field(default_factory=Sized)


def test_a_list_is_not_a_tuple() -> None:
    check(Outer(Sized((4, 5))))
    with pytest.raises(UserError, match=r"^section\.size: expected a tuple, \(4, 5\), got the list \[4, 5\]\.$"):
        check(Outer(Sized([4, 5])))  # type: ignore[arg-type]


def another(hint: Any, value: Any) -> Any:
    """Another value of the same type."""
    if typing.get_origin(hint) is Annotated:
        return another(hint.__origin__, value)
    if is_union(hint):
        inner = next(option for option in typing.get_args(hint) if option is not type(None))
        bare = inner.__origin__ if typing.get_origin(inner) is Annotated else inner
        if typing.get_origin(inner) is tuple and value is None:
            return (0.5, 1.5)
        return another(inner, value) if value is not None else {str: "text", float: 0.5}.get(bare, 7)
    if typing.get_origin(hint) is Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if typing.get_origin(hint) is tuple:
        return tuple(another(type(item), item) for item in value) or (another(typing.get_args(hint)[0], None),)
    return {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.25, str: lambda: f"{value}x"}[
        hint
    ]()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_survives_json(name: str) -> None:
    before = EXPERIMENTS[name]
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(before)))) == before
    for setting in settings(before):
        experiment = put(before, setting.path, another(setting.hint, setting.value))
        assert experiment != before
        assert from_dict(Experiment, json.loads(json.dumps(to_dict(experiment)))) == experiment, setting.name


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_carries_the_name_of_its_class(kind: type) -> None:
    values = to_dict(Experiment(model=kind()))
    assert values["model"]["kind"] == kind.__name__
    assert type(from_dict(Experiment, {"model": {"kind": kind.__name__}}).model) is kind
    assert [name for name, section in values.items() if isinstance(section, dict) and "kind" in section] == [
        "model",
        "schedule",  # a setting of its own
    ]


@pytest.mark.parametrize(("classification", "setting"), [(Focal(gamma=3.0), "gamma"), (Softmax(weight=4.0), "weight")])
def test_so_does_its_classification_where_there_is_a_choice(classification: Focal | Softmax, setting: str) -> None:
    values = to_dict(Experiment(model=DETRConfig(classification=classification)))["model"]["classification"]
    assert values["kind"] == type(classification).__name__ and values[setting] == getattr(classification, setting)
    model = {"kind": "DETRConfig", "classification": values}
    assert from_dict(Experiment, {"model": model}).model.classification == classification
    assert "kind" not in to_dict(Experiment())["model"]["classification"]  # Deformable DETR has one


def changed(*path: str, value: Any) -> dict[str, Any]:
    values = to_dict(Experiment())
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return values


def of_detr(**classification: Any) -> dict[str, Any]:
    return {"model": {"kind": "DETRConfig", "classification": classification}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed("modle", value={}), "unknown setting 'modle'. Did you mean 'model'"),
        (changed("optimizer", "lrr", value=1.0), "experiment.optimizer: unknown setting 'lrr'. Did you mean 'lr'"),
        (changed("optimizer", "lr", value="fast"), "experiment.optimizer.lr: expected float, got 'fast'"),
        (changed("schedule", "epochs", value=1.5), "experiment.schedule.epochs: expected int, got 1.5"),
        (changed("schedule", "epochs", value=True), "experiment.schedule.epochs: expected int, got True"),
        (changed("schedule", "drop_at", value=[0.5, "x"]), "experiment.schedule.drop_at[1]: expected float, got 'x'"),
        (changed("schedule", "kind", value="cosin"), "'cosin' is not one of 'step', 'cosine'"),
        (changed("data", "resize_to", value=[1, 2, 3]), "experiment.data.resize_to: expected "),
        (changed("data", "path", value=3), "experiment.data.path: expected str, got 3"),
        (changed("evaluation", "patience", value="2"), "experiment.evaluation.patience: expected int, got '2'"),
        (changed("model", "kind", value="DeformableDTRConfig"), "Did you mean 'DeformableDETRConfig'"),
        (changed("model", value=3), "experiment.model: expected a 'kind' out of DETRConfig, ConditionalDETRConfig, "),
        (changed("model", "kind", value=[]), "experiment.model: expected a 'kind' out of DETRConfig, "),
        (changed("model", "num_querys", value=3), "unknown setting 'num_querys'. Did you mean 'num_queries'"),
        (changed("model", "classification", value="softmax"), "experiment.model.classification: expected an object"),
        (changed("model", "classification", "no_object_weight", value=0.1), "unknown setting 'no_object_weight'"),
        (changed("data", value=[]), "experiment.data: expected an object of settings, got []"),
        (of_detr(kind="Sotfmax"), "experiment.model.classification: expected a 'kind' out of Focal, Softmax, got "),
        (of_detr(kind="Sotfmax"), "got 'Sotfmax'. Did you mean 'Softmax'?"),
        (of_detr(weight=1.0), "experiment.model.classification: expected a 'kind' out of Focal, Softmax, got None"),
        (of_detr(kind="Focal", alfa=0.5), "classification: unknown setting 'alfa'. Did you mean 'alpha'?"),
        (of_detr(kind="Softmax", gamma=0.5), "experiment.model.classification: unknown setting 'gamma'"),
    ],
)
def test_unknown_or_mistyped_settings_are_refused_with_their_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        from_dict(Experiment, values)
    assert message in str(error.value)


def test_integers_are_good_floats_and_lists_become_tuples() -> None:
    experiment = from_dict(Experiment, json.loads(json.dumps(changed("optimizer", "lr", value=1))))
    assert experiment.optimizer.lr == 1.0
    assert isinstance(experiment.optimizer.lr, float)
    assert experiment.data.resize_to == (800, 1333)
    experiment = from_dict(Experiment, json.loads(json.dumps(changed("schedule", "max_minutes", value=3))))
    assert isinstance(experiment.schedule.max_minutes, float)

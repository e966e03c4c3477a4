"""Flags that choose the kind of a setting."""

import pytest

from detrs.cli.kinds import with_kinds
from detrs.cli.train import read
from detrs.config.criterion import ContrastiveDenoising, GroupDenoising, NoDenoising, OneToMany
from detrs.errors import UserError
from detrs.presets import preset

START = preset("deformable-detr-tiny")


def test_the_kind_is_chosen_before_its_settings_are_parsed() -> None:
    words = "deformable-detr-tiny --criterion.denoising.kind GroupDenoising --criterion.denoising.groups 7"
    criterion = read([*words.split(), "--criterion.assignment.kind=OneToMany"])[0].criterion
    assert criterion.denoising == GroupDenoising(groups=7) and criterion.assignment == OneToMany()


def test_other_words_stay_in_order() -> None:
    found, rest = with_kinds(START, ["--lr", "1", "--criterion.denoising.kind", "ContrastiveDenoising", "--json"])
    assert found.criterion.denoising == ContrastiveDenoising() and rest == ["--lr", "1", "--json"]
    assert START.criterion.denoising == NoDenoising()


def test_settings_stay_if_the_kind_does() -> None:
    start = preset("dino-tiny")
    assert with_kinds(start, ["--criterion.denoising.kind", "ContrastiveDenoising"])[0] == start


def test_a_setting_of_another_kind() -> None:
    message = (
        "--criterion.denoising.box-noise is a setting of GroupDenoising and ContrastiveDenoising, but the kind of "
        "--criterion.denoising is NoDenoising: add --criterion.denoising.kind GroupDenoising."
    )
    with pytest.raises(UserError) as error:
        with_kinds(START, ["--criterion.denoising.box_noise=0.2"])
    assert str(error.value) == message
    with pytest.raises(UserError, match=r"--criterion\.denoising\.groups is a setting of GroupDenoising, but"):
        with_kinds(preset("dino-tiny"), ["--criterion.denoising.groups", "3"])
    with_kinds(preset("dino-tiny"), ["--criterion.denoising.pairs", "3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["GrupDenoising"],
            "GroupDenoising, ContrastiveDenoising; got 'GrupDenoising'. Did you mean 'GroupDenoising'?",
        ),
        ([], "NoDenoising, GroupDenoising, ContrastiveDenoising; got nothing."),
    ],
)
def test_unknown_kinds(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        with_kinds(START, ["--criterion.denoising.kind", *words])
    assert str(error.value).startswith("--criterion.denoising.kind expects one of ") and message in str(error.value)

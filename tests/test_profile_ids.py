"""The rule for uids and person ids, and the layout that the stores share."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.errors import BadRequest
from omi_rt.core.ids import MAX_ID_CHARACTERS, is_valid_id
from omi_rt.core.voices import USER, Identity
from omi_rt.profiles.store import (
    check_id,
    identity_in,
    sample_name,
)

ids = st.text(min_size=1, max_size=MAX_ID_CHARACTERS).filter(is_valid_id)


@pytest.mark.parametrize(
    "value",
    [
        "u",
        "x" * 128,
        "Xk3vB0aZ9QYyO1m2",
        "auth0|6123",
        "did:plc:z72i7",
        "a.b@example.org",
        ".hidden",
        "two words",
        "Zoë",
    ],
)
def test_what_identity_providers_give_out_is_accepted(value: str) -> None:
    check_id(value, "uid")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x" * 129,
        ".",
        "..",
        "a..b",
        "../other",
        "a/b",
        "a\\b",
        "/",
        "nul\x00",
        "line\nbreak",
        "\x7f",
        "\x85",
        "\u2028",
        "\ud800",
        " ",
        "\t",
        "\u3000\xa0",
        "\u200b\ufeff",
    ],
)
def test_what_could_leave_its_folder_is_refused(value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_id(value, "person id")
    assert str(caught.value).startswith("person id: ")
    assert "\n" not in str(caught.value)


def test_the_refusal_does_not_repeat_the_value() -> None:
    with pytest.raises(BadRequest) as caught:
        check_id("../secret", "uid")
    assert "secret" not in str(caught.value)


@given(value=st.text(max_size=200))
def test_a_valid_id_is_one_folder_name_that_leads_nowhere_else(value: str) -> None:
    if is_valid_id(value):
        assert PurePosixPath("root", value, "file").parts == ("root", value, "file")
        assert value not in {".", ".."}
        assert value.encode().decode() == value


@given(
    before=st.text(max_size=20),
    bad=st.sampled_from(["/", "\\", "..", "\x00", "\x1f"]),
    after=st.text(max_size=20),
)
def test_no_surroundings_make_a_forbidden_part_valid(before: str, bad: str, after: str) -> None:
    assert not is_valid_id(before + bad + after)


@given(uid=ids, person_id=ids)
def test_what_is_stored_for_somebody_is_found_as_theirs_and_nobody_elses(
    uid: str, person_id: str
) -> None:
    assert identity_in(uid, sample_name(uid, None)) == USER
    assert identity_in(uid, sample_name(uid, person_id)) == Identity(person_id)
    assert identity_in(uid + "x", sample_name(uid, person_id)) is None


@pytest.mark.parametrize("uid", ["", "..", "a/b"])
def test_no_name_is_made_for_an_invalid_uid_or_person_id(uid: str) -> None:
    with pytest.raises(BadRequest, match=r"^uid: "):
        sample_name(uid, None)
    with pytest.raises(BadRequest, match=r"^person id: "):
        sample_name("u", uid)


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("u/speech_profile.wav", USER),
        ("u/people_profiles/p/memory_segment_3.wav", Identity("p")),
        ("u/people_profiles/p/notes.txt", None),
        ("u/people_profiles/p/deeper/x.wav", None),
        ("u/people_profiles/p/.half-written.wav", None),
        ("u/people_profiles/x.wav", None),
        ("u/people_profiles//x.wav", None),
        ("u/people_profiles/../x.wav", None),
        ("u/additional_profile_recordings/x.wav", None),
        ("u/speech_profile.wav.bak", None),
        ("other/speech_profile.wav", None),
    ],
)
def test_only_names_of_the_documented_layout_are_profiles(
    name: str, identity: Identity | None
) -> None:
    assert identity_in("u", name) == identity

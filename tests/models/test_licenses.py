import pytest

from segtailor.errors import SegtailorError
from segtailor.models.licenses import check_licenses, use_of


@pytest.mark.parametrize("text", ["MIT", "apache-2.0", "Apache-2.0 (timm resnet18)", "bsd-3-clause", "CC-BY-4.0"])
def test_free_licenses_are_permissive(text):
    assert use_of(text) == "permissive"


@pytest.mark.parametrize(
    "text",
    [
        *("cc-by-nc-sa-4.0", "NVIDIA's MiT weights, or trained from them: not for commercial use", "AGPL-3.0"),
        *("CamVid (Brostow et al., 2009): research use", "other (non-commercial)"),
    ],
)
def test_licenses_that_bind_are_restricted(text):
    assert use_of(text) == "restricted"


def test_permissive_policy_refuses_restricted_weights_and_names_role_part_and_license():
    networks = {"teacher": {"backbone": "apache-2.0"}, "student": {"encoder": "cc-by-nc-4.0"}}
    with pytest.raises(SegtailorError) as caught:
        check_licenses("permissive", networks)
    message = str(caught.value)
    assert "encoder weights of the student" in message
    assert "cc-by-nc-4.0" in message
    assert "\n" not in message
    assert check_licenses("any", networks) == ["license of the student, encoder: cc-by-nc-4.0"]


def test_unknown_licenses_are_noted_and_weights_without_one_pass():
    assert check_licenses("permissive", {"teacher": {"weights": "custom"}, "student": {}}) == [
        "license of the teacher, weights: custom"
    ]

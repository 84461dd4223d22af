import pytest

from segtailor.config import DataConfig
from segtailor.data import DATASETS, create_dataset
from segtailor.data.fields import OWN, check_fields
from segtailor.errors import SegtailorError


def test_a_field_that_is_not_read_is_named_with_those_who_read_it():
    with pytest.raises(SegtailorError) as caught:
        create_dataset(DataConfig(name="camvid", streaming=True, source="x"), "train", training=True)
    message = str(caught.value)
    assert message.startswith("camvid does not read data.source, data.streaming; read by hf;")
    assert "\n" not in message


def test_toy_does_not_read_a_variant_or_void():
    for field, value in (("variant", "fine"), ("void", [3])):
        with pytest.raises(SegtailorError, match=f"toy does not read data.{field}"):
            create_dataset(DataConfig(name="toy", **{field: value}), "train", training=True)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_defaults_pass_everywhere(name):
    check_fields(DataConfig(name=name), name)


def test_every_form_of_ones_own_data_is_a_data_set():
    assert OWN.keys() <= DATASETS.keys()

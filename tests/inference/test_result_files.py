import numpy as np
import pytest

from mask2former.inference.result_files import write_image


def test_a_picture_too_wide_for_its_type_is_an_error(tmp_path):
    path = tmp_path / "a.jpg"
    with pytest.raises(OSError, match=r"a.jpg: 70000 x 1 pixels do not fit in a file of that type; name it .png"):
        write_image(path, np.zeros((1, 70000, 3), np.uint8))
    assert not path.exists()

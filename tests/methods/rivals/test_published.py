import pytest
import torch

from hggep_sc.errors import ModelError
from hggep_sc.methods.rivals.published import count_blocks, published_state

STATE = {"module.a": torch.ones(2), "module.b": torch.zeros(3)}
TAKEN_OFF = {"a", "b"}


@pytest.mark.parametrize(
    ("content", "how", "names"),
    [
        (STATE, {}, set(STATE)),
        (STATE, {"prefix": "module."}, TAKEN_OFF),
        ({"model": STATE, "optim": {"state": {}}}, {"within": "model", "prefix": "module."}, TAKEN_OFF),
        ({"a": torch.ones(2)}, {"within": "model", "prefix": "module."}, {"a"}),
        ({**STATE, "c": torch.ones(1)}, {"prefix": "module."}, {*STATE, "c"}),  # no start of all names
    ],
)
def test_state_in_its_file(content, how, names, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    state = published_state(tmp_path / "c.pth", **how)
    assert set(state) == names


@pytest.mark.parametrize("content", [{"model": STATE}, [1, 2], {"a": "text"}])
def test_what_is_no_state(content, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"c\.pth: expected a state dict"):
        published_state(tmp_path / "c.pth", within="state_dict")


class Runs:
    def __reduce__(self):
        return print, ("this was run",)


def test_nothing_is_run(tmp_path, capsys):
    torch.save({"a": Runs()}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"c\.pth: not a readable file"):
        published_state(tmp_path / "c.pth")
    assert capsys.readouterr().out == ""


def test_blocks_are_counted_from_nought():
    assert count_blocks(["v.0.a", "v.1.a", "v.1.b", "v.3.a", "w.2.a", "v.10.a"], "v.") == 2
    assert count_blocks([], "v.") == 0

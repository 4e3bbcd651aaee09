import io
import re
import sys

from hggep_sc.runtime.progress import LOGGED, bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_file_a_bar_writes_its_beginning_and_its_end(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with bar(total=1000, what="spots", unit="spot", show=True) as over:
        assert over.mininterval == LOGGED
        for _ in range(1000):
            over.update()
    states = [state for state in stderr.getvalue().replace("\r", "\n").splitlines() if state.strip()]
    assert 1 <= len(states) <= 3
    assert "1000/1000" in states[-1]


def test_on_a_terminal_it_is_redrawn_and_the_inner_one_goes(monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with bar(range(2), what="outer", unit="fold", show=True) as outer:
        assert outer.mininterval < 1
        for _ in outer:
            with bar(total=3, what="inner", unit="spot", show=True) as inner:
                inner.update(3)
    assert outer.leave is None
    assert re.search(r"outer: 100%.*2/2", stderr.getvalue())


def test_nothing_is_shown_where_nothing_is_wanted(monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(bar(range(3), what="x", unit="y", show=False)) == [0, 1, 2]
    assert stderr.getvalue() == ""

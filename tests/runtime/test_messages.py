"""What a user sees who has set up no logging and no filters: run as they do, in a Python of their own."""

import logging
import subprocess
import sys

import pytest

from helpers import WAIT
from hggep_sc.runtime import messages as _messages


def stderr_of(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT)
    assert done.stdout == ""
    return done.stderr.replace("\r", "\n").splitlines()


SAY = "import hggep_sc, logging; log = logging.getLogger('hggep_sc.tl._fit'); "
WARN = "from hggep_sc.errors import InputWarning; from hggep_sc.runtime.messages import warn; "


def test_a_warning_says_whose_line_it_is_of_and_what_it_is():
    code = WARN + "warn('3 spots', InputWarning)\nfor _ in range(2): warn('3 spots', InputWarning)"
    assert stderr_of(code) == ["<string>:1: InputWarning: 3 spots", "<string>:2: InputWarning: 3 spots"]


def test_what_is_logged_says_whose_it_is():
    assert stderr_of(SAY + "log.warning('%d spots', 3); log.info('quiet')") == ["hggep_sc: WARNING 3 spots"]


@pytest.mark.parametrize("of", ["''", "'hggep_sc'", "'hggep_sc.tl._fit'"])
def test_a_handler_of_the_user_s_is_the_only_one(of):
    code = "h = logging.StreamHandler(); h.setFormatter(logging.Formatter('mine: %(message)s')); "
    assert stderr_of(SAY + code + f"logging.getLogger({of}).addHandler(h); log.warning('once')") == ["mine: once"]


def test_basic_config_after_the_import():
    assert stderr_of(SAY + "logging.basicConfig(); log.warning('once')") == ["WARNING:hggep_sc.tl._fit:once"]


@pytest.mark.parametrize(
    ("say", "line"),
    [
        (SAY + "say = log.warning", "hggep_sc: WARNING look here"),
        (WARN + "say = lambda text: warn(text, InputWarning)", "<string>:1: InputWarning: look here"),
    ],
)
def test_between_the_states_of_a_bar_it_has_a_line_of_its_own(say, line):
    code = (
        "\nfrom tqdm.auto import tqdm\n"
        "with tqdm(total=4, desc='fit', ncols=40, mininterval=0, miniters=1) as bar:\n"
        "    bar.update(); say('look here'); bar.update()\n"
    )
    lines = stderr_of(say + code)
    assert lines.count(line) == 1
    after = lines[lines.index(line) + 1 :]
    assert any(line.startswith("fit:") for line in after)  # the bar goes on below


def test_it_is_added_once():
    handlers = list(logging.getLogger("hggep_sc").handlers)
    _messages.set_up()
    assert logging.getLogger("hggep_sc").handlers == handlers
    assert sum(isinstance(handler, _messages.LastResort) for handler in handlers) == 1


def test_caplog_takes_it(caplog, capsys):
    logging.getLogger("hggep_sc.tl").warning("for the test")
    assert caplog.messages == ["for the test"]
    assert capsys.readouterr().err == ""

"""What the package logs, as users see it."""

import logging

from livt_hf.cli.console import show_messages

logger = logging.getLogger("livt_hf.somewhere")


def test_information_goes_to_stdout_and_warnings_to_stderr_once_each(capsys):
    show_messages()
    logger.info("a line")
    logger.warning("a warning")
    assert capsys.readouterr() == ("a line\n", "a warning\n")


def test_other_processes_than_the_first_only_warn(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "1")
        show_messages()
        logger.info("a line")
        logger.warning("a warning")
    show_messages()
    assert capsys.readouterr() == ("", "a warning\n")

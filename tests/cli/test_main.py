"""The command as a whole: `info`, and words that are no command; `test_help` has the rest."""

import json

import pytest

from stepaudio.cli.main import main


def test_info(run):
    status, out, _ = run("info", "--json")
    found = json.loads(out[0])
    assert (
        status == 0 and {"backend", "blas", "dtype", "versions"} <= set(found) and found["versions"]["mlx"][0].isdigit()
    )
    status, out, _ = run("info")
    assert status == 0 and {line.split()[0] for line in out} == set(found)


def test_unknown_options_and_no_command(run, capsys):
    for argv in (["transcribe"], [], ["transcribe", "x.wav", "--sampling", "best"], ["sing"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2 and "usage: stepaudio" in capsys.readouterr().err

"""Every root script explains itself."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

from command_line import ROOT, run_script

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def test_every_script_has_help():
    def help_of(script: str) -> subprocess.CompletedProcess[str]:
        return run_script(script, "--help")

    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(SCRIPTS, pool.map(help_of, SCRIPTS), strict=True))
    assert len(answers) >= 9
    for script, answer in answers.items():
        assert answer.returncode == 0, (script, answer.stderr)
        assert answer.stdout.startswith("usage: " + script), script
        assert answer.stderr == "", script

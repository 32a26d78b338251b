"""The batch scripts of docs/slurm run, with stand-ins for SLURM's commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / f"docs/slurm/train_{name}.sbatch" for name in ("one_node", "two_nodes")]


def run_script(script: Path, folder: Path, exit_code: int) -> tuple[subprocess.CompletedProcess, str]:
    """Run a script with an `srun` that starts each task in turn and a training that exits with `exit_code`."""
    nodes, on_each = (
        int(re.search(rf"--{name}=(\d+)", script.read_text())[1]) for name in ("nodes", "ntasks-per-node")
    )
    tasks = nodes * on_each
    commands = {
        "srun": f"shift\nexport SLURM_NTASKS={tasks}\nfor i in $(seq 0 {tasks - 1}); do\n"
        f'SLURM_PROCID=$i SLURM_LOCALID=$((i % 4)) "$@"; code=$?; done; exit $code',
        "scontrol": f'echo "scontrol $*" >> {folder}/log; [ "$1" = show ] && printf "node1\\nnode2\\n"; exit 0',
        "python": f'IFS="|"; echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*" >> {folder}/log\n'
        f"exit {exit_code}",
    }
    (folder / ".venv/bin").mkdir(parents=True)
    for name, text in commands.items():
        path = folder / (".venv/bin" if name == "python" else ".") / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    done = subprocess.run(
        ["bash", script, "--model_name", "two words"], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done, (folder / "log").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_script_starts_every_rank_and_requeues_only_when_asked(script, code, tmp_path):
    done, log = run_script(script, tmp_path, code)
    assert done.returncode == code and not done.stderr
    tasks = 8 if script.stem == "train_two_nodes" else 4
    for rank in range(tasks):
        assert f"{rank}/{tasks} {rank % 4} node1:32345 run_train.py|--config|configs/dinov3_vitb.yaml|" in log
    assert log.count("|--resume|auto|--model_name|two words\n") == tasks
    assert ("scontrol requeue 12345" in log) == (code == 75)
    assert "#SBATCH --signal=USR1@300\n#SBATCH --requeue\n" in script.read_text()


def test_the_settings_files_are_read(tmp_path, monkeypatch):
    import run_train

    data = tmp_path / "data"
    data.mkdir()
    for name in ("cxr.h5", "impressions.csv", "valid.h5", "valid_labels.csv"):
        (data / name).touch()
    monkeypatch.chdir(tmp_path)
    paper = run_train.parse_args(["--config", str(ROOT / "configs/chexzero_paper.yaml")])
    assert (paper.vision, paper.optimizer, paper.lr, paper.batch_size) == ("vit_b_32", "sgd", 1e-4, 64)
    ours = run_train.parse_args(["--config", str(ROOT / "configs/dinov3_vitb.yaml"), "--lr", "3e-5"])
    assert (ours.vision, ours.precision, ours.lr, ours.one_per_study) == ("dinov3_vitb", "bf16", 3e-5, True)

"""launch/recipes: manifests of Kubeflow Trainer, checked by the schemas of its CRDs."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from mlxdist import cli
from mlxdist.launcher import host_files
from tests.support.jobs import ROOT

RECIPES = ROOT / "launch" / "recipes"
SCHEMAS = json.loads(Path(__file__).with_name("kubeflow_schema.json").read_text())
MANIFESTS = sorted(RECIPES.glob("*.yaml"))
# As Trainer writes it: the launcher's pod and two others.
HOST_FILE = """\
lm-launcher-0-0.lm slots=1
lm-node-0-0.lm slots=1
lm-node-0-1.lm slots=1
"""


def load(name):
    return yaml.safe_load((RECIPES / name).read_text())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_has_the_fields_of_its_schema(path):
    manifest = yaml.safe_load(path.read_text())
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])


def test_schema_refuses_an_unknown_field_and_another_type():
    job = load("kubeflow_job.yaml")
    for change in ({"nodes": 3}, {"numNodes": "3"}):
        wrong = copy.deepcopy(job)
        wrong["spec"]["trainer"] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMAS["TrainJob"])


def test_job_names_the_runtime_that_is_here():
    runtime = load("kubeflow_runtime.yaml")
    assert load("kubeflow_job.yaml")["spec"]["runtimeRef"] == {
        "name": runtime["metadata"]["name"]
    }


def test_job_of_the_page_is_the_one_of_the_file_in_short():
    page = (ROOT / "docs" / "recipes" / "kubeflow.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    shown, job = yaml.safe_load(block), load("kubeflow_job.yaml")
    jsonschema.validate(shown, SCHEMAS["TrainJob"])
    arguments = shown["spec"]["trainer"].pop("args")
    assert job["spec"]["trainer"].pop("args")[: len(arguments)] == arguments
    del job["spec"]["trainer"]["resourcesPerNode"]
    assert shown == job


def test_runtime_has_the_image_on_all_pods_and_labels_the_launcher():
    jobs = load("kubeflow_runtime.yaml")["spec"]["template"]["spec"]["replicatedJobs"]
    pods = {job["name"]: job["template"]["spec"]["template"]["spec"] for job in jobs}
    (images,) = {
        tuple(container["image"] for container in pod["containers"])
        for pod in pods.values()
    }
    assert len(images) == 1
    assert all(pod["containers"][0]["name"] == "node" for pod in pods.values())
    labels = {job["name"]: job["template"].get("metadata") for job in jobs}
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert labels == {"node": None, "launcher": {"labels": step}}


def test_job_command_is_accepted_with_the_host_file_of_trainer(tmp_path, capsys):
    trainer = load("kubeflow_job.yaml")["spec"]["trainer"]
    hosts = tmp_path / "hostfile"
    hosts.write_text(HOST_FILE)
    assert len(host_files.read_hosts(hosts).hosts) == trainer["numNodes"]
    program, *words = trainer["command"] + trainer["args"]
    assert program == "/opt/mlxdist/bin/mlxdist"
    text = shlex.join(words).replace("/etc/mpi/hostfile", str(hosts))
    words = shlex.split(text.replace("/opt/mlxdist/launch", str(ROOT / "launch")))
    assert cli.main([words[0], "--dry-run", *words[1:]]) == 0
    command = capsys.readouterr().out
    assert "lm-launcher-0-0.lm:1,lm-node-0-0.lm:1,lm-node-0-1.lm:1" in command


def test_image_copies_what_exists_and_makes_the_program_of_the_job():
    text = (RECIPES / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert "python3 -m venv /opt/mlxdist" in text


def test_mpirun_in_a_slurm_job_starts_its_daemon_by_srun(tmp_path):
    """srun notes how it was called, and which prted it would start on the node."""
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo slurm 23.02.7; exit 0 ;; esac\n'
        f'echo "$@" >{tmp_path}/words; command -v prted >{tmp_path}/prted; exit 1\n'
    )
    srun.chmod(0o755)
    names = ("SLURM_NODELIST", "SLURM_JOB_NODELIST")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "1",
        "SLURM_JOBID": "1",
        "SLURM_TASKS_PER_NODE": "1(x2)",
        "SLURM_NNODES": "2",
        **dict.fromkeys(names, f"{os.uname().nodename},n2"),
    }
    folder = Path(sys.executable).parent
    subprocess.run(
        [folder / "mlxdist", "run", "-H", f"{os.uname().nodename},n2", __file__],
        env=environment,
        capture_output=True,
        timeout=100,
    )
    assert "--nodelist=n2" in (tmp_path / "words").read_text()
    assert Path((tmp_path / "prted").read_text().strip()) == folder / "prted"

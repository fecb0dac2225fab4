"""The two tools under `bench/`: random models that the real engine runs, and commands in a memory cgroup."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from penjing.errors import BadFile, Unavailable, UsageError

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import in_cgroup  # noqa: E402
import random_model  # noqa: E402

MB = 1_000_000
VOCABULARY = 49_152


# --- random_model -----------------------------------------------------------------------------------------

MODELS = [("tiny", type_) for type_ in random_model.TYPES] + [("tiny-moe", "Q4_K"), ("tiny-moe", "IQ4_XS")]

# A child of its own: the engine may abort on a file that it dislikes. One JSON line per file that it ran.
ASK_ENGINE = """
import json, sys
import xllamacpp
for path in sys.argv[1:]:
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.warmup = path, 0, 256, False
    params.n_parallel = params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.check_tensors = True
    server = xllamacpp.Server(params)
    ask = {"n_predict": 4, "n_probs": 50, "temperature": 0, "ignore_eos": True}
    answers = [server.handle_completions({"prompt": text, **ask}) for text in ("One river.", "Two hills.")]
    print(json.dumps([path, answers]), flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("random")
    paths = {(shape, type_): folder / f"{shape}-{type_}.gguf" for shape, type_ in MODELS}
    for (shape, type_), path in paths.items():
        random_model.write(path, shape, type_)
    return paths


@pytest.fixture(scope="module")
def answers(models: dict[tuple[str, str], Path]) -> dict[str, list[dict[str, Any]]]:
    """What the real engine said to two prompts, by file; a file that ended the process has no entry."""
    command = [sys.executable, "-c", ASK_ENGINE, *map(str, models.values())]
    child = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return dict(json.loads(line) for line in child.stdout.splitlines())


@pytest.mark.parametrize(("shape", "type_"), MODELS)
def test_the_real_engine_runs_every_type(models, answers, shape, type_):
    """Each type loads, decodes four tokens, and has finite logits that neither vanish nor blow up."""
    one, two = (answer["choices"][0]["logprobs"]["content"] for answer in answers[str(models[shape, type_])])
    flat = -math.log(VOCABULARY)
    for token in one + two:
        logprobs = [top["logprob"] for top in token["top_logprobs"]]

        assert len(logprobs) == 50
        assert all(flat + 1 < logprob < -3 for logprob in logprobs)
        assert logprobs[0] > logprobs[-1] + 0.1
    assert len(one) == len(two) == 4
    assert [token["id"] for token in one] != [token["id"] for token in two]


@pytest.mark.parametrize("type_", random_model.TYPES)
@pytest.mark.parametrize("columns", [256, 6144])
def test_weights_have_the_intended_size(type_, columns):
    """An independent decoder sees finite weights with mean 0 and a deviation of 1/√(row length)."""
    tensor = random_model.Tensor("any.weight", (2**21 // columns, columns), type_)
    pieces = [piece.tobytes() for piece in random_model._pieces(tensor, np.random.default_rng(0))]
    content = np.frombuffer(b"".join(pieces), np.float16 if type_ == "F16" else np.uint8)
    weights = np.asarray(dequantize(content, GGMLQuantizationType[type_]), dtype=np.float64)

    assert content.nbytes == tensor.n_bytes
    assert weights.size == tensor.weights
    assert np.std(weights) == pytest.approx(columns**-0.5, rel=0.02)
    assert abs(np.mean(weights)) < 0.02 * columns**-0.5


def test_the_file_says_what_it_is(models):
    """The file has name and tokenizer; all but norms and routers is of the type asked for."""
    reader = GGUFReader(models["tiny-moe", "Q4_K"])
    fields = reader.fields
    plain = {tensor.name.split(".")[-2] for tensor in reader.tensors if tensor.tensor_type.name == "F32"}

    assert fields["general.name"].contents() == "random-tiny-moe-Q4_K"
    assert fields["general.architecture"].contents() == "qwen3moe"
    assert fields["qwen3moe.expert_used_count"].contents() == 2
    assert len(fields["tokenizer.ggml.tokens"].data) == VOCABULARY
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert "messages" in fields["tokenizer.chat_template"].contents()
    assert plain == {"output_norm", "attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate_inp"}
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q4_K"}


def test_equal_seeds_give_equal_files(models, tmp_path):
    """The content hangs on shape, type and seed alone."""
    same, other = tmp_path / "same.gguf", tmp_path / "other.gguf"
    random_model.write(same, "tiny", "Q4_K", seed=0)
    random_model.write(other, "tiny", "Q4_K", seed=1)

    assert same.read_bytes() == models["tiny", "Q4_K"].read_bytes()
    assert same.read_bytes() != other.read_bytes()
    assert same.stat().st_size == other.stat().st_size


@pytest.mark.parametrize(
    ("shape", "type_", "expected_weights"),
    [
        # per layer: q, k, v, output, three matrices of 2048 × 6144, two norms; then embedding and last norm
        ("1.5b", "Q4_K", 28 * (2 * 2048**2 + 2 * 2048 * 1024 + 3 * 2048 * 6144 + 2 * 2048) + 49_153 * 2048),
        # facts of the family: 4,022,468,096 weights with a vocabulary of 151,936 tokens of width 2560
        ("qwen3-4b", "F16", 4_022_468_096 - (151_936 - VOCABULARY) * 2560),
        ("qwen3-1.7b", "Q8_0", 1_720_574_976 - (151_936 - VOCABULARY) * 2048),
        ("qwen3-0.6b", "Q8_0", 596_049_920 - (151_936 - VOCABULARY) * 1024),
    ],
)
def test_shapes_have_the_real_number_of_weights(shape, type_, expected_weights):
    """The tensors of a shape add up to the published count of its family, less the tokens left out."""
    tensors = list(random_model._tensors(random_model.SHAPES[shape], type_))

    assert sum(tensor.weights for tensor in tensors) == expected_weights


def test_every_type_divides_the_rows_of_every_shape():
    """No row ends inside a block, so each matrix can be of each type."""
    for shape in random_model.SHAPES.values():
        for tensor in random_model._tensors(shape, "Q4_K"):
            if tensor.type == "Q4_K":
                assert tensor.size[-1] % 256 == 0, tensor


def test_unknown_names_are_refused(tmp_path):
    """A shape or a type that nobody knows names those that there are, and writes nothing."""
    with pytest.raises(UsageError, match="`7b`") as caught:
        random_model.write(tmp_path / "x.gguf", "7b", "Q4_K")
    assert "1.5b" in caught.value.hint
    with pytest.raises(UsageError, match="`Q9_X`") as caught:
        random_model.write(tmp_path / "x.gguf", "tiny", "Q9_X")
    assert "IQ4_XS" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_said_in_one_line(tmp_path, capsys):
    """A folder that cannot be made ends with exit code 2, one line and a hint."""
    (tmp_path / "file").write_text("")

    assert random_model.main([str(tmp_path / "file" / "x.gguf"), "--shape", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write")


# --- in_cgroup --------------------------------------------------------------------------------------------


def cgroups_refused() -> str:
    try:
        with in_cgroup.limited(100 * MB):
            return ""
    except Unavailable as error:
        return str(error)


needs_cgroup = pytest.mark.skipif(bool(reason := cgroups_refused()), reason=reason)


@pytest.fixture
def big_file() -> Iterator[Path]:
    """200 MB of zeros on a disk; a temporary folder in memory would be charged to nobody."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="penjing-test-") as folder:
        path = Path(folder) / "big"
        with path.open("wb") as out:
            for _ in range(200):
                out.write(bytes(MB))
        in_cgroup.drop_cache(path)
        yield path


@needs_cgroup
def test_a_process_above_the_limit_is_killed():
    """200 MB of its own do not fit into 100 MB: the kernel ends the process, and the outcome says so."""
    outcome = in_cgroup.run([sys.executable, "-c", f"bytearray({200 * MB})"], 100 * MB)

    assert outcome.exit_code == -signal.SIGKILL
    assert outcome.killed_by_limit == 1
    assert outcome.peak_bytes is None or 90 * MB < outcome.peak_bytes <= 100 * MB


@needs_cgroup
def test_a_mapped_file_may_be_larger_than_the_limit(big_file):
    """200 MB read through mmap pass through 100 MB: clean pages are given back, nobody is killed."""
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:\n"
        "    print(sum(len(pages[at : at + 10**6]) for at in range(0, len(pages), 10**6)))\n"
    )
    command = [sys.executable, "-c", code, str(big_file)]
    outcome = in_cgroup.run(command, 100 * MB, stdout=subprocess.PIPE, text=True)

    assert (outcome.exit_code, outcome.killed_by_limit, outcome.stdout) == (0, 0, f"{200 * MB}\n")
    assert outcome.peak_bytes is None or 90 * MB < outcome.peak_bytes <= 100 * MB


def test_a_dropped_file_is_out_of_the_page_cache(big_file):
    """After a read the pages are cached; after `drop_cache` they are not."""
    big_file.read_bytes()
    assert is_cached(big_file)

    in_cgroup.drop_cache(big_file)

    assert not is_cached(big_file)


def is_cached(path: Path) -> bool:
    """Whether the middle of a file can be read without waiting for the disk."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], 100 * MB, os.RWF_NOWAIT) == 4096
        except BlockingIOError:
            return False


@needs_cgroup
def test_exit_code_and_peak_are_passed_on():
    """The command's own exit code comes back, its output is untouched, and the peak is on stderr."""
    tool = [sys.executable, str(BENCH / "in_cgroup.py"), "--memory", "100MB", "--"]
    child = subprocess.run([*tool, "sh", "-c", "echo $1; exit 7", "sh", "--"], capture_output=True, text=True)

    assert (child.returncode, child.stdout) == (7, "--\n")
    assert child.stderr.startswith("peak memory ")
    assert child.stderr.endswith(" of 95.4 MiB\n")


@needs_cgroup
def test_nothing_outlives_the_group():
    """A process that the command left behind ends with it, and the group's folder is gone."""
    with in_cgroup.limited(100 * MB) as group:
        process = group.start(["sh", "-c", "sleep 300 & echo $!"], stdout=subprocess.PIPE, text=True)
        left_behind = int(process.stdout.readline())
        process.stdout.close()
        assert process.wait(timeout=10) == 0
        assert is_running(left_behind)

    assert not is_running(left_behind)
    assert not group.path.exists()


@needs_cgroup
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_and_removes_the_group(number):
    """Ctrl-C and SIGTERM to the tool alone end its children too, and leave no group."""
    script = "sleep 300 & echo $! $(grep -E 'memory|^0::' /proc/self/cgroup | head -1); wait"
    tool = [sys.executable, str(BENCH / "in_cgroup.py"), "--memory", "100MB", "--", "sh", "-c", script]
    mounts, own_groups = Path("/proc/mounts").read_text(), Path("/proc/self/cgroup").read_text()
    with subprocess.Popen(tool, stdout=subprocess.PIPE, text=True) as process:
        sleeper, group = process.stdout.readline().split()
        folder = in_cgroup.find_parent(mounts, own_groups)[0] / group.rsplit("/", 1)[-1]
        assert folder.exists()
        process.send_signal(number)

        assert process.wait(timeout=10) == 128 + number
    assert not is_running(int(sleeper))
    assert not folder.exists()


def is_running(pid: int) -> bool:
    """Whether a process lives; a dead one may wait for its parent as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever is not root meets this refusal in the tests above")
def test_without_rights_the_tool_says_so():
    """A user who may not make a group gets one line, a hint, and exit code 2; nothing is run."""
    code = "import os, in_cgroup; os.setuid(65534); exit(in_cgroup.main(['--memory', '1GB', '--', 'id']))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=BENCH)

    assert (child.returncode, child.stdout) == (2, "")
    problem, hint = child.stderr.splitlines()
    assert problem.startswith("error: ")
    assert hint.startswith("hint: run it as root")


@pytest.mark.parametrize("argument", ["0", "-1GB", "much"])
def test_a_senseless_limit_is_refused(argument, capsys):
    """A limit that is not a size above zero ends with exit code 2 and says how to write one."""
    assert in_cgroup.main([f"--memory={argument}", "--", "true"]) == 2
    assert "hint: write it like" in capsys.readouterr().err


def test_a_missing_file_cannot_be_dropped(tmp_path):
    """The name of the file is in the refusal."""
    with pytest.raises(BadFile, match=r"none\.gguf"):
        in_cgroup.drop_cache(tmp_path / "none.gguf")


def test_version_1_is_found_by_its_mount():
    """With version 1, groups are made where the memory controller is mounted."""
    mounts = (
        "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n"
        "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n"
    )

    found = in_cgroup.find_parent(mounts, "4:memory:/user/1\n0::/\n")

    assert found == (Path("/sys/fs/cgroup/memory"), in_cgroup.V1)


def test_version_2_makes_groups_beside_the_nearest_able_ancestor(tmp_path):
    """Our own group has processes and is passed over; the nearest one above that hands memory on is taken."""
    groups = {"": "cpu memory", "user": "memory pids", "user/app": "cpu", "user/app/me": "memory"}
    for folder, controllers in groups.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cgroup.subtree_control").write_text(controllers + "\n")
        (tmp_path / folder / "cgroup.procs").write_text("")
    mounts = f"cgroup2 {tmp_path} cgroup2 rw,nosuid 0 0\n"

    assert in_cgroup.find_parent(mounts, "0::/user/app/me\n") == (tmp_path / "user", in_cgroup.V2)
    assert in_cgroup.find_parent(mounts, "0::/user\n") == (tmp_path, in_cgroup.V2)
    assert in_cgroup.find_parent(mounts, "0::/\n") == (tmp_path, in_cgroup.V2)


def test_a_system_without_memory_cgroups_is_refused(tmp_path):
    """No controller, or a version 2 that hands no memory limits on: an error with a way out."""
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")

    for mounts in ("proc /proc proc rw 0 0\n", f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"):
        with pytest.raises(Unavailable, match="no memory cgroup") as caught:
            in_cgroup.find_parent(mounts, "0::/\n")
        assert "root" in caught.value.hint

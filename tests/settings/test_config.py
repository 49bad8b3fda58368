"""Settings: one YAML file, overrides on top, and an error for each mistake that says what to do."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from slideformer.errors import ConfigError
from slideformer.settings.config import Config, load_config, setting_fields
from slideformer.settings.words import expected
from slideformer.units import GIB

EXAMPLES = Path(__file__).parents[2] / "examples"
MINIMAL = "model: some/model\noutput_dir: out\ndata: {path: chat.jsonl}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(MINIMAL)
    return file


def error_of(file: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return caught.value


def test_a_minimal_file_gives_documented_defaults(config_file: Path):
    config = load_config(config_file)
    assert (config.model, config.max_length, config.learning_rate, config.max_grad_norm) == (
        "some/model",
        1024,
        1e-5,
        1,
    )
    assert config.budget.gpu_bytes is None and config.data.shuffle


def test_overrides_win_in_every_spelling(config_file: Path):
    config_file.write_text(MINIMAL + "seed: 1\nbudget:\n  gpu: 8GiB\n")
    words = "--seed 7 --learning-rate=2e-4 --data.path=b.jsonl --data.shuffle false --max_grad_norm null --max_steps -1"
    config = load_config(config_file, words.split())
    assert (config.seed, config.learning_rate, config.max_grad_norm, config.max_steps) == (7, 2e-4, None, -1)
    assert (config.data.path, config.data.shuffle) == (Path("b.jsonl"), False)
    assert config.budget.gpu_bytes == 8 * GIB


def test_an_override_can_supply_what_the_file_lacks(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: out\n")
    config = load_config(file, ["--model", "m", "--data.path", "x.jsonl"])
    assert config.model == "m" and config.data.path == Path("x.jsonl")


def test_yaml_1e5_is_a_number_and_an_empty_group_is_its_defaults(config_file: Path):
    config_file.write_text(MINIMAL + "learning_rate: 1e-5\nbudget:\n  # gpu: 24GiB\n")
    config = load_config(config_file)
    assert config.learning_rate == 1e-5 and config.budget.gpu is None


def test_home_is_expanded(config_file: Path):
    assert load_config(config_file, ["--output_dir", "~/out"]).output_dir == Path.home() / "out"


def test_max_grad_norm_zero_is_off(config_file: Path):
    assert load_config(config_file, ["--max_grad_norm", "0"]).max_grad_norm is None


def test_a_config_cannot_be_changed(config_file: Path):
    with pytest.raises(ValidationError):
        load_config(config_file).seed = 3


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("data.shufle", "data.shuffle"),
        ("path", "data.path"),
        ("max_seq_length", "max_length"),
        ("gradient_accumulation_steps", "batch_size"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_its_source(config_file: Path, key: str, nearest: str):
    error = error_of(config_file, f"--{key}=1")
    assert key in error.message and "command line" in error.message
    assert error.hint == f"did you mean {nearest}?"


@pytest.mark.parametrize(
    ("line", "nearest"),
    [("max_lenght: 5", "max_length"), ("budget: {gpus: 1GiB}", "budget.gpu"), ("save_step: 3", "save_steps")],
)
def test_an_unknown_key_in_the_file_names_the_file(config_file: Path, line: str, nearest: str):
    config_file.write_text(MINIMAL + line + "\n")
    error = error_of(config_file)
    assert str(config_file) in error.message and "unknown setting" in error.message
    assert error.hint == f"did you mean {nearest}?"


def test_a_key_like_no_other_points_at_the_list(config_file: Path):
    assert "--help" in error_of(config_file, "--zzzz=1").hint


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("--learning_rate=-3", "a number >= 0"),
        ("--learning_rate=fast", "a number >= 0"),
        ("--learning_rate=inf", "a number >= 0"),
        ("--adam_beta2=1", "a number >= 0 and < 1"),
        ("--batch_size=0", "a whole number >= 1"),
        ("--max_length=1.5", "a whole number >= 2"),
        ("--save_steps=0", "a whole number >= 1 or null"),
        ("--device=gpu", "auto, cuda or cpu"),
        ("--budget.gpu=8XB", "a size such as 24GiB or null"),
        ("--data.shuffle=perhaps", "true or false"),
        ("--model=", "a name"),
        ("--output_dir=null", "a path"),
        ("--data.train_on=prompt", "assistant, last or everything"),
    ],
)
def test_a_bad_value_names_key_value_and_range(config_file: Path, override: str, allowed: str):
    key, _, value = override[2:].partition("=")
    error = error_of(config_file, override)
    assert error.message == f"command line: {key} = {value or repr('')}, expected {allowed}"
    assert key in error.hint


def test_a_bad_value_in_the_file_names_the_file(config_file: Path):
    config_file.write_text(MINIMAL + "seed: [1, 2]\n")
    assert (
        error_of(config_file).message == f"{config_file}: seed = [1, 2], expected a whole number >= 0 and < 4294967296"
    )


@pytest.mark.parametrize("line", ["budget: 24GiB", "data: chat.jsonl"])
def test_a_value_where_a_group_belongs_lists_its_keys(tmp_path: Path, line: str):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: m\noutput_dir: o\ndata: {{path: x}}\n{line}\n")
    group = line.partition(":")[0]
    error = error_of(file)
    assert error.message == f"{file}: {group} is a group of settings" and f"{group}." in error.hint


def test_a_missing_key_is_named(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: out\ndata: {shuffle: true}\n")
    assert "model is missing" in error_of(file).message
    assert "data.path is missing" in error_of(file, "--model=m").message


def test_a_missing_group_is_named(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\noutput_dir: out\n")
    error = error_of(file)
    assert "data.path" in error.message + error.hint


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--max_steps=0"], "trains nothing"),
        (["--warmup_steps=10", "--warmup_ratio=0.1"], "both given"),
        (["--batch_size=4", "--micro_batch_size=5"], "larger than batch_size = 4"),
    ],
)
def test_settings_that_contradict_each_other(config_file: Path, overrides: list[str], words: str):
    error = error_of(config_file, *overrides)
    assert words in error.message and error.hint


@pytest.mark.parametrize("words", [["--seed"], ["seed", "3"], ["--data", "x.jsonl"]])
def test_malformed_overrides(config_file: Path, words: list[str]):
    assert "command line" in error_of(config_file, *words).message


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just text"])
def test_a_file_without_settings(tmp_path: Path, content: str):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert "no settings" in error_of(file).message


def test_a_file_that_is_not_yaml_names_the_line(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: {path: x\nseed: 1\n")
    error = error_of(file)
    assert str(file) in error.message and "line 3" in error.message and "\n" not in error.message


def test_a_file_that_cannot_be_read(tmp_path: Path):
    assert "No such file" in error_of(tmp_path / "none.yaml").message
    assert "directory" in error_of(tmp_path).message
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00model")
    assert "not valid YAML" in error_of(tmp_path / "bytes.yaml").message


def test_every_setting_is_described_for_help():
    described = dict(setting_fields())
    assert {"model", "budget.offload_dir", "data.shuffle"} <= described.keys()
    for key, field in described.items():
        assert field.description and expected(field), key


def test_python_callers_get_the_same_checks():
    with pytest.raises(ValidationError):
        Config.model_validate({"model": "m", "output_dir": "o", "data": {"path": "x"}, "unknown": 1})


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_valid(file: Path):
    data = load_config(file).data
    assert data.path and data.path.suffix == ".jsonl"


def with_data(tmp_path: Path, data: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: m\noutput_dir: o\ndata: {data}\n")
    return file


def test_one_path_is_one_source(tmp_path: Path):
    data = load_config(with_data(tmp_path, "{path: org/set, split: test, revision: 1a2b}")).data
    (source,) = data.all_sources()
    assert (str(source.path), source.split, source.revision, source.weight) == ("org/set", "test", "1a2b", 1)


def test_several_sources_have_weights(tmp_path: Path):
    data = load_config(with_data(tmp_path, "{sources: [{path: a.jsonl}, {path: b.csv, weight: 0.5}]}")).data
    assert [(source.path.name, source.weight) for source in data.all_sources()] == [("a.jsonl", 1), ("b.csv", 0.5)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{path: a.jsonl, sources: [{path: b.jsonl}]}", "data.sources stands beside path"),
        ("{sources: [{path: b.jsonl}], split: test}", "data.sources stands beside path"),
        ("{sources: [{path: b.jsonl, wieght: 2}]}", "did you mean data.sources.weight"),
        ("{sources: [{weight: 2}]}", "data.sources.path is missing"),
        ("{sources: [{path: b.jsonl, weight: 0}]}", "data.sources.weight = 0, expected a number > 0"),
        ("{sources: b.jsonl}", "data.sources = b.jsonl, expected a list of sources"),
    ],
)
def test_mistakes_in_sources_are_named(tmp_path: Path, data: str, words: str):
    assert words in str(error_of(with_data(tmp_path, data)))


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--eval_steps=5", "eval_steps is set, but nothing is held out", "set eval_data.path or eval_size"),
        ("--save_best=true", "save_best is set, but nothing is held out", "set eval_data.path or eval_size"),
        ("--eval_size=0.1 --eval_data.path=b.jsonl", "eval_size and eval_data are both given", "keep one"),
        ("--eval_size=0.1 --early_stopping_patience=2", "needs evaluations during training", "set eval_steps"),
        ("--eval_data.path=chat.jsonl", "eval_data: chat.jsonl is trained on as well", "choose another split, or set"),
        ("--eval_data.split=test", "eval_data.path is missing", "set eval_data.path to a path"),
        ("--sample_steps=5", "there are no sample_prompts", "add sample_prompts"),
        ("--val_set_size=0.1", "unknown setting val_set_size", "did you mean eval_size?"),
    ],
)
def test_what_evaluation_lacks_is_said(config_file: Path, words: str, message: str, hint: str):
    error = error_of(config_file, *words.split())
    assert message in error.message and hint in error.hint


def test_evaluation_from_a_hub_split_of_what_is_trained_on(config_file: Path):
    config_file.write_text("model: m\noutput_dir: o\ndata: {path: a/b}\neval_data: {path: a/b, split: test}\n")
    config = load_config(config_file)
    assert config.evaluates and config.eval_data.all_sources()[0].split == "test"


def test_a_wrong_key_in_eval_sources_is_named(config_file: Path):
    config_file.write_text(MINIMAL + "eval_data: {sources: [{path: b.jsonl, weigth: 2}]}\n")
    assert "eval_data.sources.weight" in error_of(config_file).hint

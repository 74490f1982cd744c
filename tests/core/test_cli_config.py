"""From files, variables and flags to one frozen config, and from a mistake to one sentence."""

import inspect
import os
import sys
from collections import defaultdict
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

import run_pipeline
from spectacles import cli
from spectacles.core import config
from spectacles.core.config import (
    DatasetConfig,
    ExploreConfig,
    PipelineConfig,
    PredictCommand,
    PredictConfig,
    TrainConfig,
    help_texts,
    select,
    to_plain,
)
from spectacles.core.config.base import Settings
from spectacles.core.errors import UserError
from spectacles.core.exit_codes import exit_codes
from spectacles.core.run_dir import STAGES, create_run, point_latest

GROUPS = [member for member in vars(config).values() if inspect.isclass(member) and issubclass(member, Settings)]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SPECTACLES"):
            monkeypatch.delenv(name)


def parse(*args: str, config_class: type = TrainConfig, defaults: dict[str, object] | None = None):
    return cli.parse(config_class, args, "A description.", defaults)


def rejected(*args: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_gives_the_defaults():
    assert parse() == TrainConfig()


def test_each_source_of_a_setting_beats_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "settings.yaml"
    file.write_text("batch_size: 34\n")
    assert parse().batch_size == 32
    defaults = {"batch_size": 33}
    assert parse(defaults=defaults).batch_size == 33
    assert parse("--config", str(file), defaults=defaults).batch_size == 34
    monkeypatch.setenv("SPECTACLES_BATCH_SIZE", "35")
    assert parse("--config", str(file), defaults=defaults).batch_size == 35
    assert parse("--config", str(file), "--batch_size", "36", defaults=defaults).batch_size == 36
    assert parse("--batch_size=36", "--config", str(file), defaults=defaults).batch_size == 36


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("weights", "w.pth", Path("w.pth")),
        ("lr", "1e-4", 1e-4),
        ("image_size", "64", 64),
        ("in_chans", "1", 1),
        ("resize", "crop", "crop"),
        ("flip", "false", False),
        ("no_pretrained", "true", True),
        ("head_epochs", "0", 0),
        ("run_name", "2024-01-01", "2024-01-01"),
        ("run_name", "007", "007"),
        ("backbone", "hf-hub:timm/x", "hf-hub:timm/x"),
    ],
)
def test_a_setting_has_the_same_value_from_everywhere(tmp_path, monkeypatch, field, text, value):
    file = tmp_path / "settings.yaml"
    file.write_text(f"{field}: {text!r}\n" if isinstance(value, str) else f"{field}: {text}\n")
    switches = {"flip": ["--no_flip"], "no_pretrained": ["--no_pretrained"]}
    by_flag = parse(*switches.get(field, [f"--{field}", text]))
    by_file = parse("--config", str(file))
    monkeypatch.setenv(f"SPECTACLES_{field.upper()}", text)
    by_variable = parse()
    for parsed in (by_flag, by_file, by_variable):
        assert getattr(parsed, field) == value and type(getattr(parsed, field)) is type(value)
    assert by_flag == by_file == by_variable


def test_a_runs_saved_config_comes_back_as_it_was(tmp_path):
    settings = TrainConfig(weights=Path("w.pth"), lr=1e-4, image_size=64, flip=False, resize="pad", run_name="x")
    run = create_run(tmp_path, "x")
    run.save_config("train", to_plain(settings))
    where = ["--output_dir", str(tmp_path), "--run_name", "x"]
    again = parse(*where, defaults=cli.run_defaults(where))
    assert again == TrainConfig(**{**vars(settings), "output_dir": tmp_path, "run_name": "x"})


def test_a_saved_config_of_other_stages_is_no_obstacle(tmp_path):
    run = create_run(tmp_path, "x")
    run.save_config("dataset", to_plain(DatasetConfig(val_fraction=0.3, seed=5)))
    point_latest(run)
    defaults = cli.run_defaults(["--output_dir", str(tmp_path)])
    assert parse(config_class=ExploreConfig, defaults=defaults).seed == 5


def test_the_defaults_come_from_the_run_that_the_config_file_names(tmp_path):
    for name, lr in (("mine", 0.5), ("latest-one", 0.25)):
        create_run(tmp_path, name).save_config("train", {"lr": lr})
    file = tmp_path / "settings.yaml"
    file.write_text(f"output_dir: {tmp_path}\nrun_name: mine\n")
    args = ["--config", str(file)]
    parsed = parse(*args, defaults=cli.run_defaults(args))
    assert (parsed.run_name, parsed.lr) == ("mine", 0.5)


def test_resuming_once_is_not_resuming_for_ever(tmp_path):
    create_run(tmp_path, "x").save_config("train", to_plain(TrainConfig(resume=True)))
    where = ["--output_dir", str(tmp_path), "--run_name", "x"]
    assert parse(*where, defaults=cli.run_defaults(where)).resume is False


@pytest.mark.parametrize("source", ["flag", "variable", "file", "file named by a variable"])
@pytest.mark.parametrize(("name", "value"), [("resume", "true"), ("stages", "train,evaluate")])
def test_a_run_that_goes_on_keeps_its_settings_wherever_that_is_said(tmp_path, monkeypatch, source, name, value):
    run = create_run(tmp_path, "x")
    run.write_config({"lr": 0.5, "val_fraction": 0.3})
    point_latest(run)
    arguments, file = ["--output_dir", str(tmp_path)], tmp_path / "settings.yaml"
    file.write_text(f"{name}: {value}\n")
    if source == "flag":
        arguments += [f"--{name}"] if value == "true" else [f"--{name}", value]
    elif source == "variable":
        monkeypatch.setenv(f"SPECTACLES_{name.upper()}", value)
    elif source == "file":
        arguments += ["--config", str(file)]
    else:
        monkeypatch.setenv("SPECTACLES_CONFIG", str(file))
    config = run_pipeline.parse(arguments)
    assert (config.lr, config.val_fraction) == (0.5, 0.3)
    assert config.resume is (name == "resume") and config.stages == ("all" if name == "resume" else value)


def test_a_flag_wins_over_a_variable_and_that_over_a_file_in_naming_the_run(tmp_path, monkeypatch):
    for name, lr in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        create_run(tmp_path, name).write_config({"lr": lr})
    (tmp_path / "settings.yaml").write_text(f"run_name: a\noutput_dir: {tmp_path}\n")
    where = ["--config", str(tmp_path / "settings.yaml")]
    assert cli.run_defaults(where) == {"lr": 0.1}
    monkeypatch.setenv("SPECTACLES_RUN_NAME", "b")
    assert cli.run_defaults(where) == {"lr": 0.2}
    assert cli.run_defaults([*where, "--run_name", "c"]) == {"lr": 0.3}


def test_without_a_run_there_are_no_saved_settings(tmp_path):
    assert cli.run_defaults(["--output_dir", str(tmp_path)]) == {}
    assert cli.run_defaults(["--output_dir", str(tmp_path), "--run_name", "gone"]) == {}


def test_a_new_pipeline_run_does_not_inherit_from_the_latest(tmp_path):
    create_run(tmp_path, "x").save_config("train", {"lr": 0.5})
    assert cli.run_defaults(["--output_dir", str(tmp_path)], reopen=False) == {}


def test_a_wrong_flag_is_one_sentence_that_names_it():
    flags = {
        "--bach_size 8": "unrecognized arguments: --bach_size 8",
        "--batch 8": "unrecognized arguments: --batch 8",  # abbreviations are not taken
        "--val_fraction 0.2": "unrecognized arguments: --val_fraction 0.2",  # another stage's
        "--batch_size many": "--batch_size many cannot be used: use a whole number",
        "--batch_size 2.5": "--batch_size 2.5 cannot be used: use a whole number",
        "--batch_size": "argument --batch_size: expected one argument",
        "--lr fast": "--lr fast cannot be used: use a number",
        "--resize stretch": "--resize stretch cannot be used: use squash, crop, pad",
        "--in_chans 2": "--in_chans 2 cannot be used: use 1, 3",
        "--dropout 1.5": "--dropout 1.5 is out of range: use 0 to 1",
        "--epochs 0": "--epochs 0 is out of range: use 1 or more",
        "stray": "unrecognized arguments: stray",
        "--config missing.yaml": "--config missing.yaml does not exist",
    }
    for line, message in flags.items():
        assert rejected(*line.split()).startswith(message), line


def test_a_wrong_line_in_a_config_file_is_one_sentence_that_names_it(tmp_path):
    file = tmp_path / "settings.yaml"
    lines = {
        "bach_size: 8": "Option 'bach_size' is not accepted",
        "batch_size: many": "--batch_size many cannot be used: use a whole number",
        "val_fraction: 0.2": "Option 'val_fraction' is not accepted",
        "train: {lr: 1}": "Option 'train.lr' is not accepted",
        "lr": "Unexpected config: lr",
    }
    for line, message in lines.items():
        file.write_text(line)
        assert rejected("--config", str(file)).startswith(message), line


def test_a_wrong_value_in_a_variable_is_one_sentence_that_names_it(monkeypatch):
    monkeypatch.setenv("SPECTACLES_BATCH_SIZE", "many")
    assert rejected() == "--batch_size many cannot be used: use a whole number."


@pytest.mark.parametrize("config_class", [TrainConfig, PipelineConfig, DatasetConfig, PredictCommand])
def test_the_printed_config_can_be_given_back(config_class, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        parse("--print_config", config_class=config_class)
    assert stopped.value.code == 0
    (tmp_path / "settings.yaml").write_text(capsys.readouterr().out)
    assert parse("--config", str(tmp_path / "settings.yaml"), config_class=config_class) == config_class()


def test_every_setting_has_a_help_text_and_a_default():
    for group in GROUPS:
        for field in fields(group):
            assert len(help_texts(group)[field.name].split()) >= 3, field.name
            assert field.default is not MISSING, field.name


WIDER_IN_PREDICT = {
    "engine": ["ComputeConfig", "PredictCommand"],  # a cluster too
    "image_dir": ["ImageDirConfig", "PredictCommand"],  # an address too
}


def test_every_setting_is_declared_once():
    declared = defaultdict(list)
    for group in GROUPS:
        for name in inspect.get_annotations(group):
            declared[name].append(group.__name__)
    assert {name: groups for name, groups in declared.items() if len(groups) > 1} == WIDER_IN_PREDICT


def test_every_setting_is_a_flag_with_its_help(capsys):
    for group in GROUPS:
        parser = cli.build_parser(group, "A description.")
        with pytest.raises(SystemExit):
            parser.parse_args(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        for field in fields(group):
            assert f"--{field.name}" in text
            assert help_texts(group)[field.name].split()[0] in text


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        TrainConfig().lr = 1.0


def test_a_plain_config_is_ready_for_yaml():
    plain = to_plain(PipelineConfig(train_csv=Path("x.csv"), stages="train"))
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert plain["train_csv"] == "x.csv"


def test_a_stage_gets_its_part_of_the_pipelines_config():
    part = select(PipelineConfig(top_k=2, batch_size=7), PredictConfig)
    assert part == PredictConfig(top_k=2, batch_size=7)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("all", list(STAGES)),
        ("train", ["train"]),
        ("explore,dataset", ["dataset", "explore"]),
        (" train , evaluate,", ["train", "evaluate"]),
    ],
)
def test_stages_are_chosen_by_name_and_run_in_order(text, stages):
    assert run_pipeline.choose_stages(parse("--stages", text, config_class=PipelineConfig).stages) == stages


@pytest.mark.parametrize("text", ["", ",", "exploit", "train;evaluate", "train,all"])
def test_unknown_stages_are_the_users_mistake(text):
    with pytest.raises(UserError, match="--stages"):
        run_pipeline.choose_stages(text)


def test_a_users_mistake_is_one_sentence_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stopped, exit_codes():
        raise UserError("--lr 0 must be above 0.")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --lr 0 must be above 0.\n"


def test_an_interrupt_is_exit_code_130(capsys):
    with pytest.raises(SystemExit) as stopped, exit_codes():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_internal_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_codes():
        raise ZeroDivisionError


def test_a_stage_without_a_run_explains_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main("train", TrainConfig, "Train.")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run yet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backbone", ["simple_cnn", "hf-hub:timm/some model", "a/b:c"])
def test_a_new_runs_name_is_a_folder_name(tmp_path, backbone):
    name = cli.new_name(TrainConfig(backbone=backbone))
    assert create_run(tmp_path, name).path.parent == tmp_path

"""Job files: round trips, kept comments, and errors that name the key, what was expected and the nearest known key."""

import tomllib

import pytest

from presets.errors import JobError, UserError
from presets.job.fields import FIELDS, toml_text
from presets.job.schema import DatasetPanel, Job, JobPanel, LayersPanel, MergePanel, PromptPanel
from presets.job.toml_file import (
    absolute_paths,
    dump_job,
    get_value,
    job_from_dict,
    job_to_dict,
    load_job,
    parse_job,
    parse_value,
    relative_paths,
    save_job,
    with_value,
)

LEAST = '[job]\nname = "orbit"\n[[datasets]]\npath = "clips"\n'
COMMENTED = """\
# my job
[job]
name = "orbit" # the folder
trigger = ""

[training]
lr = 1e-4 # keep
steps = 2000

[[datasets]] # the good clips
path = "clips"
num_frames = 41 # fits all

[[sample.prompts]]
prompt = "orbit"   # first
ctrl_img = "a.png"
"""


def full_job() -> Job:
    """Every field away from its default, with text that needs escaping."""
    job = Job(job=JobPanel(name="full"), datasets=[DatasetPanel(path="a"), DatasetPanel(path="b")])
    for path, field in FIELDS.items():
        at = path.replace("datasets.", "datasets[1].")
        if path.startswith(("sample.prompts.", "target.layers.", "model.merge.")) or field.required:
            continue
        if path == "datasets.caption_extension":
            value = ".long.txt"
        elif field.choices:
            value = next((c for c in field.choices if c != field.default), field.default)
        elif isinstance(field.default, str) or field.type_text.startswith("text"):
            value = 0.875 if path == "model.boundary" else 'say "ä\\b"\n\t#x = 1 \x7f 日本'
        elif isinstance(field.default, list):
            special = {"job.gpus": [1, 2], "datasets.exclude": ["ü/1.mp4", "a, b.mp4"]}
            value = special.get(path, ["q", "ffn"] if "text" in field.type_text else [512, 768])
        else:
            value = 0.5 if field.type_text.startswith("number") else 48
        job = with_value(job, at, value)
    job.sample.prompts = [
        PromptPanel(prompt='"quoted"', ctrl_img="ü/1.png", end_img="z.mp4"),
        PromptPanel(prompt="[trigger]"),
    ]
    job.target.layers = [LayersPanel(match="ffn", rank=4), LayersPanel(match="blocks.0-9", lr_factor=0.5)]
    job.model.merge = [MergePanel(path="ü/1.safetensors", strength=-0.5), MergePanel(path="b", expert="low_noise")]
    return job


def test_paths_of_previews_are_made_absolute(tmp_path):
    out = absolute_paths(full_job(), tmp_path)
    assert (out.sample.prompts[0].ctrl_img, out.sample.prompts[0].end_img) == (
        str(tmp_path / "ü/1.png"),
        str(tmp_path / "z.mp4"),
    )
    assert (out.sample.prompts[1].ctrl_img, out.sample.prompts[1].end_img) == ("", "")


def test_paths_below_a_folder_go_with_it(tmp_path):
    placed = absolute_paths(full_job(), tmp_path)
    there = relative_paths(placed, tmp_path)
    assert str(tmp_path) not in dump_job(there) and there != placed
    assert absolute_paths(there, tmp_path) == placed
    assert relative_paths(placed, tmp_path / "elsewhere") == placed


def problems(text: str) -> list[str]:
    with pytest.raises(JobError) as e:
        parse_job(text, where="job.toml")
    assert str(e.value).startswith("job.toml: ")
    return e.value.problems


def test_round_trip_of_every_field():
    job = full_job()
    assert all(
        f.default != get_value(job, p.replace("datasets.", "datasets[1]."))
        for p, f in FIELDS.items()
        if len(f.choices) != 1 and not p.startswith(("sample.prompts", "target.layers", "model.merge"))
    )
    assert parse_job(dump_job(job)) == job
    assert job_from_dict(job_to_dict(job)) == job


def test_round_trip_through_a_file(tmp_path):
    path = tmp_path / "deep" / "job.toml"
    save_job(full_job(), path)
    assert load_job(path) == full_job()
    assert list(path.parent.iterdir()) == [path], "the temporary file stays behind"


def test_comments_and_order_stay_when_values_change(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(COMMENTED)
    job = with_value(with_value(load_job(path), "training.lr", 5e-5), "datasets[0].num_frames", 33)
    save_job(job, path)
    text = path.read_text()
    for comment in ("# my job", "# the folder", "# keep", "# the good clips", "# fits all", "# first"):
        assert comment in text
    assert "5e-05 # keep" in text and "33 # fits all" in text
    assert load_job(path) == job
    assert text.index("[training]") < text.index("[[datasets]]")


@pytest.mark.parametrize(
    "change",
    [
        lambda j: j.datasets.append(DatasetPanel(path="more")),
        lambda j: j.sample.prompts.clear(),
        lambda j: j.sample.prompts.append(PromptPanel(prompt="two")),
        lambda j: setattr(j.target, "alpha", 8.0),
        lambda j: setattr(j.job, "gpus", [3]),
        lambda j: setattr(j.model, "low_vram", True),
    ],
)
def test_dump_onto_any_change_reads_back_equal(change):
    job = parse_job(COMMENTED)
    change(job)
    assert parse_job(dump_job(job, onto=COMMENTED)) == job


def test_alpha_can_be_taken_away_again():
    job = with_value(parse_job(LEAST), "target.alpha", 8.0)
    text = dump_job(job)
    assert parse_job(dump_job(with_value(job, "target.alpha", None), onto=text)).target.alpha is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[training]\nlearning_rate = 1\n", "training.learning_rate: unknown key"),
        ('on_done = "poweroff"\n', "on_done: a job file holds no command"),
        ('[job]\nname = "a"\non_failed = "rm -r /"\n', "job.on_failed: a job file holds no command"),
        ('[when]\non_done = "poweroff"\n', "when: a job file holds no command"),
        ('[[notify]]\nkind = "ntfy"\n', "notify: is no part of a job but of the daemon's own settings.toml"),
        ("[training]\nstep = 5\n", "training.step: unknown key. Did you mean training.steps?"),
        ("[trainng]\n", "trainng: unknown key. Did you mean training?"),
        ("[sample]\nprompt = []\n", "sample.prompt: unknown key. Did you mean sample.prompts?"),
        (
            '[[sample.prompts]]\nprompt = "a"\ncontrol = "b"\n',
            "sample.prompts[0].control: unknown key. Did you mean sample.prompts[0].ctrl_img?",
        ),
        ("[training]\nsteps = 1.5\n", "training.steps: expected integer, got 1.5"),
        ('[training]\nsteps = "5"\n', 'training.steps: expected integer, got "5"'),
        ("[training]\ndop = 1\n", "training.dop: expected true or false, got 1"),
        ("[training]\nlr = true\n", "training.lr: expected number, got true"),
        ("[training]\nlr = nan\n", "training.lr: expected a finite number, got nan"),
        ("[training]\nlr = inf\n", "training.lr: expected a finite number, got inf"),
        ("[model]\nboundary = -inf\n", "model.boundary: expected a finite number, got -inf"),
        ('[model]\nboundary = "high"\n', 'model.boundary: expected "model" or number, got "high"'),
        ('[training]\nloss = "l2"\n', 'training.loss: expected one of "mse", "mae", "huber", got "l2"'),
        ("[target]\nrank = 0\n", "target.rank: expected 1 to 1024, got 0"),
        ('[target]\ntype = "lokr"\n', 'target.type: expected one of "lora", got "lokr". LoKr keeps for the backward'),
        ('[target]\ntype = "dora"\n', 'target.type: expected one of "lora", got "dora". DoRA does not come out'),
        ("[training]\nlr = 0\n", "training.lr: expected above 0, at most 10, got 0"),
        ("[job]\n", "job.name: missing, and it has no default"),
        ("job = 3\n", "job: expected a table, got 3"),
        ("[sample]\nprompts = [1]\n", "sample.prompts[0]: expected a table, got 1"),
        ('[sample]\nprompts = "a"\n', 'sample.prompts: expected one or more [[sample.prompts]] tables, got "a"'),
        ("[training]\nsteps = 2026-01-01\n", "training.steps: expected integer, got 2026-01-01"),
        ("[training]\nsteps = {a = 1}\n", "training.steps: expected integer, got a table"),
        ("[save]\nkeep = 1\n", "save.keep: expected 2 to 1000, got 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_full_path(text, expected):
    table = text.partition("]")[0].strip("[") if text.startswith("[") else ""
    rest = "".join(
        part
        for part in ('[job]\nname = "o"\n', '[[datasets]]\npath = "c"\n')
        if not (table == "job" or text.startswith("job")) or "datasets" in part
    )
    found = problems(text + rest)
    assert any(p.startswith(expected) for p in found), found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("resolutions = []", "datasets[1].resolutions: expected "),
        ("resolutions = 512", "datasets[1].resolutions: expected list of integers, got 512"),
        ("resolutions = [512, 32]", "datasets[1].resolutions: expected 64 to 4096 for each, got [512, 32]"),
        ('resolutions = ["a"]', 'datasets[1].resolutions: expected list of integers, got ["a"]'),
        ("num_frame = 41", "datasets[1].num_frame: unknown key. Did you mean datasets[1].num_frames?"),
        ("caption_dropout = 1.5", "datasets[1].caption_dropout: expected 0 to 1, got 1.5"),
        ("path = ''", "datasets[1].path: expected some text, got "),
    ],
)
def test_problems_of_one_dataset_carry_its_index(body, expected):
    own = body if body.startswith("path") else f'path = "d"\n{body}'
    assert any(p.startswith(expected) for p in problems(f"{LEAST}[[datasets]]\n{own}\n")), problems(
        f"{LEAST}[[datasets]]\n{own}\n"
    )


def test_all_problems_are_told_at_once():
    found = problems("[job]\nname = 'a/b'\nsed = 1\n[training]\nlr = 'x'\n[[datasets]]\nnum_frames = 0\n")
    assert len(found) == 5
    assert any(p.startswith("job.name: expected 1 to 64 letters") for p in found)
    assert "datasets[0].path: missing, and it has no default" in found


def test_no_dataset_at_all():
    assert any(p.startswith("datasets: ") for p in problems('[job]\nname = "a"\n'))
    assert any(p.startswith("datasets: expected at least one") for p in problems('datasets = []\n[job]\nname = "a"\n'))


def test_broken_toml_says_where():
    (problem,) = problems("[job\n")
    assert "not valid TOML" in problem and "line 1" in problem


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such job file"):
        load_job(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'[job]\nname = "\xe9"\n')
    with pytest.raises(UserError, match="not UTF-8"):
        load_job(tmp_path / "latin.toml")
    with pytest.raises(UserError, match="cannot be read"):
        load_job(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        save_job(parse_job(LEAST), tmp_path / "latin.toml" / "job.toml")


def test_a_damaged_file_is_not_overwritten_silently(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text("[job\n")
    with pytest.raises(UserError, match="not valid TOML"):
        save_job(parse_job(LEAST), path)
    assert path.read_text() == "[job\n"


def test_saving_keeps_the_file_s_permissions(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(COMMENTED)
    path.chmod(0o640)
    save_job(parse_job(COMMENTED), path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "written",
    [
        "[multistage]\nswitch_every = 5 # five\n[multistage.high]\nlr = 5e-5 # slow\nrank = 8\n",
        "[multistage]\nhigh.lr = 5e-5 # slow\nswitch_every = 5 # five\nhigh.rank = 8\n",
        "[multistage]\nhigh = {lr = 5e-5, rank = 8} # slow\nswitch_every = 5 # five\n",
        "[multistage.high]\nlr = 5e-5 # slow\nrank = 8\n[training]\nsteps = 7 # five\n[multistage.low]\nrank = 3\n",
        "[multistage]\nswitch_every = 5 # five\n[training]\nsteps = 7\n[multistage.high]\nlr = 5e-5 # slow\nrank = 8\n",
    ],
    ids=["tables", "dotted", "inline", "apart", "late"],
)
def test_values_of_one_expert_keep_their_place_and_comments(written):
    text = LEAST + written
    job = parse_job(text)
    assert (job.multistage.high.lr, job.multistage.high.rank, job.multistage.low.lr) == (5e-5, 8, None)
    job = with_value(
        with_value(with_value(job, "multistage.high.lr", 1e-5), "multistage.high.rank", None), "multistage.low.rank", 4
    )
    dumped = dump_job(job, onto=text)
    assert parse_job(dumped) == job and dump_job(job, onto=dumped) == dumped
    assert (
        "# slow" in dumped
        and "# five" in dumped
        and dumped.count("multistage.high]") == written.count("multistage.high]")
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[multistage.high]\nlrr = 1\n", "multistage.high.lrr: unknown key. Did you mean multistage.high.lr?"),
        ("[multistage.low]\nlr = 0\n", "multistage.low.lr: expected above 0, at most 10, got 0"),
        ("[multistage.low]\nrank = 2.5\n", "multistage.low.rank: expected integer or left out, got 2.5"),
        ("[multistage.low]\nshare = 0\n", "multistage.low.share: expected above 0, at most 1000, got 0"),
        ("[multistage]\nhigh = 1e-4\n", "multistage.high: expected a table, got 0.0001"),
    ],
)
def test_mistakes_about_one_expert_are_named(written, expected):
    assert problems(LEAST + written) == [expected]


def test_with_value_checks_and_leaves_the_original_alone():
    job = parse_job(LEAST)
    assert with_value(job, "datasets[0].num_frames", 33).datasets[0].num_frames == 33
    assert job.datasets[0].num_frames == 41
    with pytest.raises(JobError, match=r"target\.rank: expected 1 to 1024"):
        with_value(job, "target.rank", 0)
    with pytest.raises(UserError, match=r"Did you mean training\.steps"):
        with_value(job, "training.step", 1)
    with pytest.raises(UserError, match=r"no datasets\[4\]"):
        with_value(job, "datasets[4].num_frames", 1)
    with pytest.raises(UserError):
        with_value(job, "datasets.num_frames", 1)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.lr", "5e-5", 5e-5),
        ("training.lr", " 1 ", 1),
        ("training.dop", "true", True),
        ("model.low_vram", "auto", "auto"),
        ("model.low_vram", "false", False),
        ("model.boundary", "0.875", 0.875),
        ("model.boundary", "model", "model"),
        ("datasets[0].resolutions", "512, 768", [512, 768]),
        ("datasets[0].resolutions", "[512]", [512]),
        ("datasets[0].resolutions", "512", [512]),
        ("datasets[0].exclude", "a.mp4, deep/b.mp4", ["a.mp4", "deep/b.mp4"]),
        ("datasets[0].exclude", '["a, b.mp4"]', ["a, b.mp4"]),
        ("datasets[0].exclude", "", []),
        ("job.trigger", "123", "123"),
        ("job.trigger", "true", "true"),
        ("job.name", "orbit-2", "orbit-2"),
        ("target.alpha", "", None),
        ("sample.negative", 'a "b", c', 'a "b", c'),
        ("training.loss", "huber", "huber"),
        ("target.alpha", "8", 8.0),
        ("multistage.high.lr", "5e-5", 5e-5),
        ("multistage.low.rank", "", None),
        ("multistage.low.rank", "32", 32),
        ("multistage.high.share", "0.5", 0.5),
    ],
)
def test_what_a_user_types(path, text, value):
    assert parse_value(path, text) == value


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("training.lr", "fast", "training.lr: expected number"),
        ("training.steps", "", "training.steps: expected integer"),
        ("training.dop", "yes", "training.dop: expected true or false"),
        ("training.loss", "l2", 'training.loss: expected one of "mse"'),
        ("training.lr", "nan", "training.lr: expected a finite number"),
        ("job.gpus", "0,x", "job.gpus: expected list of integers"),
        ("training.steps", "1\ny = 2", "training.steps: expected integer"),
        ("job.name", "a b", "job.name: expected 1 to 64 letters"),
        ("datasets[0].caption_extension", "long.txt", "datasets[0].caption_extension: expected the end of a file name"),
    ],
)
def test_what_a_user_mistypes(path, text, message):
    with pytest.raises(JobError) as e:
        parse_value(path, text)
    assert message in str(e.value)


@pytest.mark.parametrize("value", ['say "hi"', "back\\slash", "two\nlines", "ü", [1, "a"], True, 1e-4, 10**18])
def test_toml_text_is_toml(value):
    assert tomllib.loads(f"x = {toml_text(value)}")["x"] == value


def test_a_file_from_windows_is_read_whatever_its_editor_put_before_it(tmp_path):
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xef\xbb\xbf" + COMMENTED.replace("\n", "\r\n").encode())
    job = load_job(path)
    assert job == parse_job(COMMENTED)
    save_job(with_value(job, "training.lr", 2e-4), path)
    assert load_job(path).training.lr == 2e-4 and "# keep" in path.read_text("utf-8")
    path.write_bytes(COMMENTED.encode("utf-16"))
    with pytest.raises(UserError, match=r"UTF-16 text.*Save it as UTF-8"):
        load_job(path)


@pytest.mark.parametrize(
    "written, sign",
    [
        (r"C:\Users\me\clips", r"\U"),
        (r"C:\data\clips", r"\d"),
        (r"D:\clips" + "\\", r"\c"),
        (r"\\nas\share\clips", r"\s"),
        (r"clips\orbit", r"\o"),
        (r"C:\tmp\xyz", r"\x"),
    ],
)
def test_a_backslash_in_double_quotes_is_named_with_both_ways_to_write_it(written, sign):
    (problem,) = problems(LEAST.replace('"clips"', f'"{written}"'))
    doubled = written.replace("\\", "\\\\")
    assert "line 4" in problem and f"a backslash begins an escape (here {sign})" in problem
    assert f"'{written}'" in problem and f'"{doubled}"' in problem
    for right in (f"'{written}'", f'"{doubled}"'):
        assert parse_job(LEAST.replace('"clips"', right)).datasets[0].path == written


def test_single_quotes_are_not_offered_for_a_text_that_has_one():
    (problem,) = problems(LEAST.replace('"clips"', r'"C:\my\bob\'s"'))
    assert problem.endswith(r"""(here \m). Double each backslash: "C:\\my\\bob\\'s""" + '"')


def test_a_backslash_that_toml_reads_as_something_else_is_found_too():
    (problem,) = problems(LEAST.replace('"clips"', '"C:\\new\\tools"'))
    assert (
        problem.startswith("datasets[0].path: in double quotes a backslash begins an escape")
        and "single quotes" in problem
    )
    assert parse_job(LEAST + '[[sample.prompts]]\nprompt = "A:\\nB"\n').sample.prompts[0].prompt == "A:\nB"
    (problem,) = problems("[job\nname = 'a\\b'\n")
    assert "backslash" not in problem


AITK = (
    "job: extension\nconfig:\n  name: orbit\n  process:\n    - type: sd_trainer\n      datasets:\n        -"
    " folder_path: /d/orbit\n"
)
FOREIGN = {
    "ai-toolkit's YAML": (AITK, "an ai-toolkit job, not a wanlora one"),
    "ai-toolkit's YAML under a heading": ("---\n# exported\n" + AITK, "an ai-toolkit job"),
    "ai-toolkit's JSON": (
        '{"job": "extension", "config": {"name": "orbit", "process": [{"type": "sd_trainer"}]}}',
        "an ai-toolkit job",
    ),
    "musubi's command": (
        (
            "accelerate launch src/musubi_tuner/wan_train_network.py --task i2v-A14B \\\n --dit low.safetensors"
            " --network_dim 32\n"
        ),
        "a command of musubi-tuner, not a wanlora job",
    ),
    "musubi's dataset": (
        '[general]\nresolution = [832, 480]\n[[datasets]]\nvideo_directory = "/d"\ntarget_frames = [1, 25]\n',
        "a dataset of musubi-tuner",
    ),
    "musubi's options": (
        'dit = "low.safetensors"\ndit_high_noise = "high.safetensors"\nnetwork_module = "networks.lora_wan"\n',
        "a musubi-tuner job",
    ),
    "musubi's options in tables": (
        '[model]\ndit = "low.safetensors"\n[network]\nnetwork_module = "networks.lora_wan"\n',
        "a musubi-tuner job",
    ),
    "diffusion-pipe's job": (
        (
            "output_dir = 'o'\ndataset = 'd.toml'\nepochs = 100\npipeline_stages = 1\n[model]\ntype ="
            " 'wan'\n[adapter]\ntype = 'lora'\n"
        ),
        "a diffusion-pipe job",
    ),
    "diffusion-pipe's dataset": (
        "resolutions = [512]\nframe_buckets = [1, 33]\n[[directory]]\npath = '/d'\n",
        "a dataset of diffusion-pipe",
    ),
    "diffusion-pipe's command": (
        "deepspeed --num_gpus=1 train.py --deepspeed --config wan.toml\n",
        "a command of diffusion-pipe",
    ),
    "kohya's dataset": (
        "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'd'\n",
        "a dataset of kohya's sd-scripts",
    ),
    "some YAML": ("model:\n  rank: 16\nsteps: 2000\n", "a YAML file"),
    "some JSON": ('{"rank": 16}', "a JSON file"),
    "a script": ("#!/bin/sh\nset -e\nwanlora train job.toml\n", "a shell script"),
}


@pytest.mark.parametrize("text, named", FOREIGN.values(), ids=FOREIGN)
def test_another_trainer_s_file_is_called_by_its_name(tmp_path, text, named):
    path = tmp_path / "theirs"
    path.write_text(text)
    with pytest.raises(JobError) as raised:
        load_job(path)
    assert f"{path}: this is {named}" in str(raised.value) and "wanlora new" in raised.value.fix
    assert len(raised.value.problems) == 1


def test_a_video_is_no_job(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(UserError, match="not text"):
        load_job(path)


@pytest.mark.parametrize(
    "wrong",
    [
        "[job\nname = 1",
        "[job]\nname: orbit\n[training]\nlr = 1",
        "name = orbit",
        "",
        "[[datasets]]\npath = 'clips'\n[model]\npath = 'a/b'\n[training]\nsteps = 2000\n",
    ],
)
def test_our_own_files_with_mistakes_are_not_taken_for_another_trainer_s(wrong):
    assert not any("not a wanlora" in problem for problem in problems(wrong))

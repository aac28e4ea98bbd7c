"""The page of a run: whole without a server, the same each time, and never what a text in it would have it be."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
from PIL import Image

from presets.errors import UserError
from presets.report import films
from presets.report.chart import Place, chart
from presets.report.measures import Camera, Film, Judged, Look, Motion, Preview
from presets.report.page import page, write_page
from presets.report.run_reader import read_run
from tests.helpers import recorded_run
from tests.helpers.drawn_films import camera, finding, square, write_run

HOSTILE = '</title><script>alert("1")</script><img src=x onerror=alert(2)> & \x1b[2J\u202e \'"`'
VOID = {"meta", "img", "br", "path", "line", "rect"}


class Reader(HTMLParser):
    """Every element is closed in its turn; what there is, with its values and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def read(folder: Path) -> Reader:
    return Reader(page(read_run(folder)))


def run_with(tmp_path: Path, prompts: tuple[str, ...] = ("a wall",), name: str = "pan", **more) -> Path:
    clips = {"c": (camera(right=2), "a wall")}
    previews = {step: [square(right=3)] * len(prompts) for step in (0, 10, 20)}
    return write_run(tmp_path / name, clips, previews, list(prompts), **more)


def test_everything_is_in_one_file_that_asks_for_nothing(tmp_path):
    run = run_with(tmp_path, tell=lambda log: log.finding(finding("the loss jumped"), step=12))
    there = read(run)
    said = there.text
    for words in ("pan", "done", "20 of 20 steps", "Use it in ComfyUI", "the loss jumped", "step 20, seed 42"):
        assert words in said
    assert [v["content"] for v in there.of("meta") if v.get("http-equiv")] == [
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    ]
    assert not there.of("script") and not there.of("link") and not there.of("iframe")
    addresses = [v for _, values in there.tags for k, v in values.items() if k in ("src", "poster")]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert [v["href"] for v in there.of("a")] == [f"./samples/step_{step:09d}/00.mp4" for step in (0, 10, 20)]
    shown = [base64.b64decode(v["src"].partition(",")[2]) for v in there.of("video")]
    assert shown == [(run / f"samples/step_{step:09d}/00.mp4").read_bytes() for step in (0, 10, 20)]
    assert {v["poster"].partition(";")[0] for v in there.of("video")} == {"data:image/webp"}


def test_it_is_the_same_each_time_and_replaces_the_one_before(tmp_path, monkeypatch):
    run = run_with(tmp_path)
    first = write_page(run).read_bytes()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert write_page(run) == run / "report.html" and (run / "report.html").read_bytes() == first
    assert [p.name for p in run.iterdir() if "tmp" in p.name] == []


def test_texts_of_others_are_texts(tmp_path):
    def tell(log):
        log.finding(finding(HOSTILE, fix=HOSTILE))
        log.emit("changed", field="sample.every", old=HOSTILE, new=HOSTILE, step=20)
        log.emit("failed", cause=HOSTILE, next=HOSTILE)

    run = run_with(tmp_path, (HOSTILE,), trigger=HOSTILE, tell=tell, done=False, metadata="full")
    events = (run / "events.jsonl").read_text().replace("a card", msgspec.json.encode(HOSTILE).decode()[1:-1])
    (run / "events.jsonl").write_text(events)
    there = read(run)
    assert not there.of("script") and not any("onerror" in v for _, v in there.tags) and not there.of("img")
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert there.text.count(shown) >= 8
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page(read_run(run)))


@pytest.mark.parametrize(
    "path", ["javascript:alert(1)", "../clips/c.mp4", "/etc/passwd", "//host/x", "samples", "\x00"]
)
def test_a_path_leads_nowhere_but_into_the_run(tmp_path, path: str):
    run = run_with(tmp_path)
    old = '"samples/step_000000020/00.mp4"'
    events = (run / "events.jsonl").read_text()
    assert old in events
    (run / "events.jsonl").write_text(events.replace(old, msgspec.json.encode(path).decode()))
    there = read(run)
    assert len(there.of("video")) == len(there.of("a")) == 2
    assert all(v["href"].startswith("./samples/step_0000000") for v in there.of("a"))
    (run / "link.mp4").symlink_to("/etc/passwd")
    (run / "events.jsonl").write_text(events.replace(old, '"link.mp4"'))
    assert len(read(run).of("video")) == 2


def test_films_that_would_make_it_too_large_are_linked(tmp_path, monkeypatch):
    run = run_with(tmp_path)
    size = (run / "samples/step_000000020/00.mp4").stat().st_size
    posters = sum(len(v["poster"]) for v in read(run).of("video"))
    monkeypatch.setattr(films, "MOST_BYTES", posters + size * 4 // 3 + 200)
    there = read(run)
    assert [base64.b64decode(v["src"].partition(",")[2]) for v in there.of("video")] == [
        (run / "samples/step_000000020/00.mp4").read_bytes()
    ], "the newest comes first"
    links = {v["href"] for v in there.of("a")}
    assert links == {f"./samples/step_{step:09d}/00.mp4" for step in (0, 10, 20)}
    assert all((run / link).is_file() for link in links)
    assert "2 films would make this page too large" in there.text


def test_a_long_run_with_many_steps_is_thinned(tmp_path):
    run = recorded_run.write(tmp_path)
    there = read(run)
    said = there.text
    assert "noisy_v1" in said and "2,400 of 2,400 steps, in 3 attempts" in said
    assert len(there.of("svg")) == 2 and "rank 16" in said
    assert "After step" in said and "training.lr" in said and "5e-5" in said
    assert "the loss or gradient is not finite" in said
    assert not there.of("video") and len(there.of("img")) == 2 * 7, "posters alone where there is no film"
    assert len(page(read_run(run))) < 400_000
    steps = list(range(0, 4000, 100))
    kept = films.chosen(steps, 1700)
    assert len(kept) == films.MOST_STEPS and {0, 1700, 3900} <= kept
    assert films.chosen(steps[:5], 100) == set(steps[:5])


def test_curves_are_drawings_with_round_numbers(tmp_path):
    run = recorded_run.write(tmp_path)
    drawings = re.findall(r"<svg.*?</svg>", page(read_run(run)), re.DOTALL)
    for text in drawings:
        svg = ET.fromstring(text)
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        labels = [float(t.text) for t in svg.iterfind("{*}text") if t.text != "step"]
        assert len(labels) >= 6 and {500, 1000, 1500, 2000} <= set(labels)
        for path in svg.iterfind("{*}path"):
            numbers = [float(n) for n in re.findall(r"[\d.]+", path.attrib["d"])]
            assert max(numbers[::2]) <= width and max(numbers[1::2]) <= height and min(numbers) >= 0
        curve = next(p for p in svg.iterfind("{*}path") if "curve" in p.attrib["class"])
        ys = [float(n) for n in re.findall(r"[\d.]+", curve.attrib["d"])][1::2]
        assert ys[0] < ys[-1], "the loss falls, and down is larger"


@pytest.mark.parametrize("means", [[0.0, 5e-324], [1e-320] * 2, [0.1, 0.1 + 2e-17], [0.0, 0.0], [1e90, -1e90]])
def test_a_curve_is_drawn_of_any_numbers(means: list[float]):
    places = [Place(step, mean, mean, mean) for step, mean in enumerate(means)]
    assert "nan" not in (drawn := chart("a loss", "high_noise", places)) and 4 < drawn.count("<text") < 20


def test_which_file_goes_where(tmp_path):
    run = run_with(tmp_path, ("[trigger], a wall",), trigger="ohwx", metadata="full")
    said = read(run).text
    assert "High noise: behind wan2.2_i2v_high_noise_14B put a LoraLoaderModelOnly with pan_high_noise.saf" in said
    assert "Low noise: behind wan2.2_i2v_low_noise_14B put a LoraLoaderModelOnly with pan_low_noise.safe" in said
    assert "Put the trigger phrase ohwx into the prompt" in said and "ohwx, a wall" in said
    stopped = run_with(tmp_path, name="stopped", done=False)
    assert "Its LoRA files do not lie here any more" in read(stopped).text
    (stopped / "stopped_000000010_high_noise.safetensors").write_bytes(b"")
    said = read(stopped).text
    assert "stopped_000000010_high_noise.safetensors" in said
    assert "The low-noise model stays as it is: no LoRA of it was made" in said and "no trigger word" in said
    begun = write_run(tmp_path / "begun", {"c": (camera(right=2), "a wall")}, {}, ["a wall"], done=False)
    said = read(begun).text
    assert "There are no LoRA files yet" in said and "It was not over when this page was written; wanlora rep" in said


def test_the_measures_stand_in_it(tmp_path):
    run = run_with(tmp_path)
    assert "Measures" not in read(run).text
    motion = Motion(
        speed=0.4,
        directions=[1.0] + [0.0] * 7,
        camera=Camera(right=0.1, down=-0.2, zoom=0.05, roll=-0.2),
        subject_directions=[1.0] + [0.0] * 7,
        subject_speed=0.3,
        subject_share=0.1,
    )
    film = Film(frames=9, motion=motion, look=Look(colours=0.1, sharpness=0.9, flicker=0.01))
    shown = Preview(
        step=10,
        path="samples/step_000000010/00.mp4",
        prompt=HOSTILE,
        number=0,
        has_trigger=False,
        film=film,
        speed=0.8,
        direction=0.93,
        changed=0.25,
    )
    judged = Judged(name="pan", clips=[film], previews=[shown], notes=[HOSTILE])
    (run / "judge.json").write_bytes(msgspec.json.encode(judged))
    said = read(run).text
    assert "Step 10: previews move 0.80x as fast as the clips, their directions agree by 0.93" in said
    assert "without the trigger they are 0.250 off the base's own" in said
    assert "Measured after step 10, before the previews up to step 20" in said
    assert "+0.10,-0.20" in said
    uneven = msgspec.structs.replace(
        film, motion=msgspec.structs.replace(motion, directions=[1.0], subject_directions=[])
    )
    huge = msgspec.structs.replace(film, look=Look(colours=1e308, sharpness=1e308, flicker=0))
    for films_of_it in ([film, uneven], [huge, huge]):
        (run / "judge.json").write_bytes(msgspec.json.encode(Judged(name="pan", clips=films_of_it)))
        assert "The measures could not be read" in read(run).text
    (run / "judge.json").write_bytes(msgspec.json.encode(Judged(name="pan", clips=[film], notes=["", "said"])))
    assert "Said." in read(run).text
    (run / "judge.json").write_text('{"name": 3}')
    assert "The measures could not be read" in read(run).text


def test_damaged_files_take_nothing_else_with_them(tmp_path):
    run = run_with(tmp_path)
    (run / "samples/step_000000010/00.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (run / "samples/step_000000000/00.png").unlink()
    (run / "samples/step_000000000/00.mp4").unlink()
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines.insert(3, b"{no event}\n")
    (run / "events.jsonl").write_bytes(b"".join(lines))
    there = read(run)
    assert len(there.of("video")) == 2 and "not there any more" in there.text
    assert "1 line of its events could not be read, and is left out" in there.text


def test_previews_of_another_prompt_are_not_shown_as_those_of_the_newest(tmp_path):
    run = run_with(tmp_path, metadata="full")
    log = run / "events.jsonl"
    lines = log.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "step_000000010/00.mp4" in line)
    lines[at] = lines[at].replace('"a wall"', '"a <b>door"')
    log.write_text("\n".join(lines) + "\n")
    said = read(run).text
    assert "step 10, seed 42, of “a <b>door”" in said and said.count("of “") == 1
    job = run / "job.toml"
    job.write_text(job.read_text().replace('metadata = "full"', 'metadata = "plain"'))
    said = read(run).text
    assert "Prompt 1" in said and "step 10, seed 42, of “another prompt”" in said and said.count("of “") == 1


def test_what_may_be_shared_holds_no_place_and_no_prompt_unless_asked_for(tmp_path):
    """As the LoRA files have it: who gets the page learns neither whose folder it was nor what was asked for."""
    place = tmp_path / "Anna's own" / "my films"
    prompt = "my secret castle at dawn"

    def tell(log):
        words = f"{place}/a b.mp4: cannot be decoded; {place.parent}/clips/c.mp4 and ~anna/x.mp4 can: see /etc/hosts"
        log.finding(finding(words, fix=f"Leave out {place / 'x.mp4'}; see https://example.org/a/b, and/or 1/2"))
        log.finding(finding(f"the prompt “{prompt}” is in no caption"))
        log.emit("failed", cause=f"{tmp_path}/models/base: gone", next="Look into ~/models/base")

    def written(metadata: str) -> tuple[str, str]:
        run = run_with(place, (prompt, "tiny"), name=f"{metadata}_v1", tell=tell, done=False, metadata=metadata)
        film = Film(frames=1, motion=None, look=Look(colours=0, sharpness=1, flicker=0))
        path = "samples/step_000000010/00.mp4"
        shown = {"step": 10, "path": path, "number": 1, "has_trigger": True, "film": film}
        judged = [Preview(prompt=prompt, speed=None, direction=None, changed=None, **shown)]
        notes = [f"{place}/c.mp4 is short"]
        (run / "judge.json").write_bytes(msgspec.json.encode(Judged(name="x", previews=judged, notes=notes)))
        html = page(read_run(run))
        return html, read(run).text

    html, said = written("plain")
    for secret in (str(tmp_path), "Anna", "~", "/etc", "my films/", prompt, "tiny"):
        assert secret not in html.replace("data:", ""), secret
    for words in (
        "c.mp4 and x.mp4 can: see hosts.",
        "Leave out x.mp4; see https://example.org/a/b, and/or 1/2.",
        "Base: gone. Look into base.",
        "Prompt 1",
        "Prompt 2",
        "prompt 2",
        "C.mp4 is short.",
        'save.metadata = "full" shows them',
    ):
        assert words in said, words
    html, said = written("full")
    assert all(words in said for words in (str(place), prompt, "~anna/x.mp4", "/etc/hosts"))
    assert "left out of it" not in said


def test_where_no_run_lies_and_where_a_link_does(tmp_path):
    with pytest.raises(UserError, match="there is no such run folder"):
        write_page(tmp_path / "nowhere")
    run = run_with(tmp_path)
    (run / "report.html").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="it is a link"):
        write_page(run)
    assert not (tmp_path / "elsewhere").exists()


def test_posters_are_small(tmp_path):
    run = run_with(tmp_path)
    Image.new("RGB", (1280, 720), (200, 30, 30)).save(run / "samples/step_000000010/00.png")
    poster = read(run).of("video")[1]["poster"]
    (tmp_path / "p.webp").write_bytes(base64.b64decode(poster.partition(",")[2]))
    with Image.open(tmp_path / "p.webp") as image:
        assert image.size == (320, 180)

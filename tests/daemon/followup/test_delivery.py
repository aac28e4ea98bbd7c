"""Messages to real servers on this machine, and to a sendmail."""

import base64
import email
import json
import socket
from pathlib import Path

import pytest

from daemon.followup.delivery import deliver
from daemon.followup.message import Message, message_of, trial_message
from daemon.queue.entry import FollowUp
from daemon.settings import NotifySettings, Secret
from tests.daemon.followup.conftest import Receiver
from tests.helpers.waiting import PATIENCE

FACTS = {
    "WANLORA_JOB": "orbit", "WANLORA_ID": "3", "WANLORA_STATE": "failed", "WANLORA_STEP": "70", "WANLORA_STEPS": "90",
    "WANLORA_RUN_DIR": "/r/orbit", "WANLORA_ATTEMPT": "2", "WANLORA_FILES": "",
    "WANLORA_OUTCOME": "No <@here> & \x1b]52;c;AA\x07 memory.",
}  # fmt: skip


@pytest.fixture
def message() -> Message:
    return message_of(FollowUp(key="k", event="failed", session="b", facts=FACTS), 5.0)


def test_a_webhook_gets_everything_as_json(receiver: Receiver, message: Message):
    said = deliver(NotifySettings(kind="webhook"), message, Secret(f"{receiver.url}/hook", "tk"))
    assert said.ok and said.text == "answered 200: thank you"
    [heard] = receiver.heard
    assert heard.path == "/hook" and heard.headers["Authorization"] == "Bearer tk"
    told = json.loads(heard.body)
    assert (told["event"], told["job"], told["id"], told["step"], told["steps"]) == ("failed", "orbit", 3, 70, 90)
    assert told["outcome"] == FACTS["WANLORA_OUTCOME"] and told["files"] == [] and told["host"] == socket.gethostname()


def test_ntfy_gets_text_and_headers(receiver: Receiver, message: Message):
    assert deliver(NotifySettings(kind="ntfy"), message, Secret(f"{receiver.url}/topic")).ok
    [heard] = receiver.heard
    assert (heard.path, heard.headers["Title"], heard.headers["Priority"], heard.headers["Tags"]) == (
        "/topic", "wanlora: orbit has failed", "high", "x",
    )  # fmt: skip
    assert b"\x1b" not in heard.body and b"at step 70 of 90" in heard.body and "Authorization" not in heard.headers


def test_chat_gets_text_that_calls_nobody(receiver: Receiver, message: Message):
    for kind in ("slack", "discord"):
        assert deliver(NotifySettings(kind=kind), message, Secret(f"{receiver.url}/{kind}")).ok
    slack, discord = (json.loads(heard.body) for heard in receiver.heard)
    assert "&lt;@here&gt; &amp;" in slack["text"] and set(slack) == {"text"}
    assert "No <@here>" in discord["content"] and discord["allowed_mentions"] == {"parse": []}


@pytest.mark.parametrize(("code", "again"), [(500, True), (503, True), (429, True), (400, False), (401, False)])
def test_a_refusal_says_what_came_back_and_whether_to_try_again(
    receiver: Receiver, message: Message, code: int, again: bool
):
    receiver.codes, receiver.says, receiver.extra = (
        [code],
        b"no, tk-very-secret, not at /hook/abc",
        {"Retry-After": "7"},
    )
    said = deliver(NotifySettings(kind="webhook"), message, Secret(f"{receiver.url}/hook/abc", "tk-very-secret"))
    assert (said.ok, said.again, said.wait) == (False, again, 7.0)
    assert f"answered {code}" in said.text and "secret" not in said.text and "hook/abc" not in said.text


def test_a_redirection_is_not_followed(receiver: Receiver, message: Message):
    receiver.codes, receiver.extra = [302], {"Location": f"{receiver.url}/elsewhere"}
    said = deliver(NotifySettings(kind="webhook"), message, Secret(f"{receiver.url}/hook", "token"))
    assert not said.ok and not said.again and "302" in said.text and "/elsewhere" in said.text
    assert [heard.path for heard in receiver.heard] == ["/hook"]


def test_a_login_in_the_address_is_shown_to_the_receiver_alone(receiver: Receiver, message: Message):
    receiver.codes, receiver.says = [401], b"no me of hunter2%21 or hunter2!"
    url = receiver.url.replace("://", "://me:hunter2%21@")
    said = deliver(NotifySettings(kind="webhook"), message, Secret(f"{url}/hook"))
    [heard] = receiver.heard
    assert base64.b64decode(heard.headers["Authorization"].removeprefix("Basic ")) == b"me:hunter2!"
    assert "hunter2" not in said.text and heard.headers["Host"] == receiver.url.removeprefix("http://")
    for odd in ("https://me:hunter2@", "https://me:hunter2@@"):
        assert "hunter2" not in deliver(NotifySettings(kind="webhook"), message, Secret(f"{odd}127.0.0.1/x")).text


@pytest.mark.parametrize("rest", ["/services/T0000/B0000/verysecret", "?token=verysecret", "/a?key=very%73ecret"])
def test_no_part_of_an_address_is_repeated(receiver: Receiver, message: Message, rest: str):
    receiver.codes, receiver.says = [302], b"no hook verysecret"
    receiver.extra = {"Location": f"{receiver.url}/moved?token=verysecret\r\n \x1b]52;c;AA\x07ERROR a line of its own"}
    said = deliver(NotifySettings(kind="slack"), message, Secret(f"{receiver.url}{rest}"))
    assert "verysecret" not in said.text and "it points to" in said.text
    assert said.text.isprintable()


def test_nobody_there_is_tried_again_and_the_address_not_told(receiver: Receiver, message: Message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/very-secret"
        said = deliver(NotifySettings(kind="webhook"), message, Secret(url))
    assert not said.ok and said.again and "refused" in said.text and "secret" not in said.text


def test_what_is_no_http_server_is_an_answer_too(message: Message):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        import threading

        def speak() -> None:
            other, _ = server.accept()
            with other:
                other.recv(65536)
                other.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        said = deliver(NotifySettings(kind="webhook"), message, Secret(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        thread.join()
    assert not said.ok and said.again


@pytest.mark.process
def test_mail_goes_through_sendmail(sendmail: Path, tmp_path: Path, message: Message):
    target = NotifySettings(kind="mail", to="me@here.example", sender="wanlora@box", sendmail=str(sendmail))
    said = deliver(target, message, Secret())
    assert said.ok and said.text == "sendmail took it"
    arguments, _, text = (tmp_path / "mail").read_text().partition("\n")
    mail = email.message_from_string(text)
    assert arguments == "-t -i"
    assert (mail["To"], mail["From"], mail["Subject"]) == (
        "me@here.example",
        "wanlora@box",
        "wanlora: orbit has failed",
    )
    assert "at step 70" in mail.get_payload() and "\x1b" not in mail.get_payload()


@pytest.mark.process
@pytest.mark.parametrize(("script", "again"), [("exit 75", True), ("cat >&2; echo no such user; exit 67", False)])
def test_a_sendmail_that_fails_says_so(sendmail: Path, message: Message, script: str, again: bool):
    sendmail.write_text(f"#!/bin/sh\n{script}\n")
    said = deliver(NotifySettings(kind="mail", to="a@b", sendmail=str(sendmail)), message, Secret())
    assert not said.ok and said.again is again and "exit code" in said.text


def test_an_address_with_a_line_break_makes_no_header(message: Message):
    target = NotifySettings(kind="mail", to="a@b\nBcc: c@d", sendmail="/bin/true")
    assert not deliver(target, message, Secret()).ok


def test_without_sendmail_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, message: Message):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("daemon.followup.delivery.SENDMAIL", ())
    said = deliver(NotifySettings(kind="mail", to="a@b"), message, Secret())
    assert not said.ok and not said.again and "install one" in said.text


@pytest.mark.process
def test_a_sendmail_of_an_unknown_home_is_a_failure_of_that_receiver_alone(message: Message):
    said = deliver(NotifySettings(kind="mail", to="a@b", sendmail="~nobody-is-called-so/mail"), message, Secret())
    assert not said.ok and said.text == (
        "~nobody-is-called-so/mail, the `sendmail` of mail in settings.toml, cannot be run: No such file or directory"
    )


def test_a_test_message_names_its_receiver():
    assert "phone" in trial_message("phone", 1.0).text

"""What a message says, in the form of each kind of receiver. How it gets there is daemon.followup.delivery's."""

import socket

import msgspec
from msgspec import Struct

from daemon.queue.entry import FollowUp
from daemon.settings import NotifySettings, Secret

MOST_TEXT = 1500  # characters; ntfy makes a file of more than 4096 bytes, Discord takes 2000 characters
_SAYS = {"done": "is done", "failed": "has failed", "stopped": "has stopped", "restarted": "was restarted by itself"}
_PRIORITY = {"done": "default", "failed": "high", "stopped": "default", "restarted": "low"}  # ntfy's words
_TAG = {"done": "white_check_mark", "failed": "x", "stopped": "pause_button", "restarted": "arrows_counterclockwise"}


class Message(Struct, frozen=True, kw_only=True):
    """About one ending, or a test."""

    event: str
    title: str  # one line
    text: str
    facts: dict[str, str]  # as in daemon.followup.facts
    time: float


def message_of(due: FollowUp, time: float) -> Message:
    facts = due.facts
    state = facts.get("WANLORA_STATE", "")
    says = "was cancelled" if state == "cancelled" else _SAYS[due.event]
    where = "" if due.event == "done" else f" at step {facts.get('WANLORA_STEP')} of {facts.get('WANLORA_STEPS')}"
    lines = [
        f"{facts.get('WANLORA_JOB')} {says}{where} on {socket.gethostname()}.",
        facts.get("WANLORA_OUTCOME", ""),
        facts.get("WANLORA_FILES", "") or facts.get("WANLORA_RUN_DIR", ""),
    ]
    return Message(
        event=due.event,
        title=f"wanlora: {facts.get('WANLORA_JOB')} {says}",
        text=_shown("\n".join(line for line in lines if line)),
        facts=facts,
        time=time,
    )


def trial_message(label: str, time: float) -> Message:
    host = socket.gethostname()
    return Message(
        event="test",
        title="wanlora: a test",
        text=f"The daemon on {host} can tell {label} about its jobs.",
        facts={},
        time=time,
    )


def _shown(text: str) -> str:
    """Without what a terminal or a mail reader would obey; cut to what every receiver takes."""
    text = "".join(c for c in text if c == "\n" or c.isprintable())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def body_of(target: NotifySettings, message: Message, secret: Secret) -> tuple[bytes, dict[str, str]]:
    """What is posted, and its headers."""
    headers = {"Content-Type": "application/json", "User-Agent": "wanlora"}
    if secret.token:
        headers["Authorization"] = f"Bearer {secret.token}"
    match target.kind:
        case "ntfy":
            headers |= {
                "Content-Type": "text/plain; charset=utf-8",
                "Title": message.title.encode("ascii", "replace").decode(),
                "Priority": _PRIORITY.get(message.event, "default"),
                "Tags": _TAG.get(message.event, "test_tube"),
            }
            return message.text.encode(), headers
        case "slack":
            # the three characters that mean something there: no text of a run calls a channel or makes a link
            text = message.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return msgspec.json.encode({"text": text}), headers
        case "discord":
            return msgspec.json.encode({"content": message.text, "allowed_mentions": {"parse": []}}), headers
    return msgspec.json.encode(_webhook(message)), headers


def _webhook(message: Message) -> dict[str, object]:
    facts = message.facts

    def number(name: str) -> int:
        return int(facts.get(name) or 0)

    return {
        "event": message.event,
        "title": message.title,
        "text": message.text,
        "host": socket.gethostname(),
        "time": message.time,
        "job": facts.get("WANLORA_JOB", ""),
        "id": number("WANLORA_ID"),
        "state": facts.get("WANLORA_STATE", ""),
        "outcome": facts.get("WANLORA_OUTCOME", ""),
        "run_dir": facts.get("WANLORA_RUN_DIR", ""),
        "step": number("WANLORA_STEP"),
        "steps": number("WANLORA_STEPS"),
        "attempt": number("WANLORA_ATTEMPT"),
        "files": facts.get("WANLORA_FILES", "").splitlines(),
    }


def mail_of(target: NotifySettings, message: Message) -> bytes:
    """Raises ValueError for an address that cannot stand in a mail."""
    from email.message import EmailMessage  # with the first one: a megabyte

    mail = EmailMessage()
    mail["Subject"] = message.title
    mail["To"] = target.to
    if target.sender:
        mail["From"] = target.sender
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday answers to it
    mail.set_content(message.text + "\n")
    return mail.as_bytes()

"""Brings one message to one receiver: by HTTP or through sendmail, in a thread, with an end. Addresses and tokens stay
out of every text."""

import base64
import os
import re
import shutil
import subprocess
from urllib.parse import unquote, urlsplit

import msgspec

from daemon.followup.message import Message, body_of, mail_of
from daemon.settings import NotifySettings, Secret
from presets.file_names import expanded

SECONDS = 15.0  # for each wait on the network; daemon.followup.follow_ups ends the whole
MAIL_SECONDS = 60.0
SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/local/sbin/sendmail")
MOST_ANSWER = 200  # bytes that are read, for people
MOST_LOCATION = 500  # characters
LEAST_PART = 8  # characters of a part of an address that is a secret by itself, as Slack's and Discord's last ones are
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one try."""

    ok: bool
    text: str  # what came back, or why nothing did
    again: bool = False  # it may succeed later
    wait: float = 0.0  # seconds that the receiver asks for before


def deliver(target: NotifySettings, message: Message, secret: Secret) -> Delivery:
    """Blocks. Raises nothing that a receiver can cause."""
    return _mail(target, message) if target.kind == "mail" else _post(target, message, secret)


def _post(target: NotifySettings, message: Message, secret: Secret) -> Delivery:
    import http.client  # all with the first message: they bring ssl, a few MB
    import urllib.error
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """A POST that is redirected becomes a GET without its content, and would carry the token elsewhere."""

        def redirect_request(self, *_: object) -> None:
            return None

    data, headers = body_of(target, message, secret)
    url, login = _without_login(secret.url)
    if login and "Authorization" not in headers:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
    request = urllib.request.Request(url, data, headers, method="POST")
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=SECONDS) as answer:
            return Delivery(ok=True, text=_answer(answer.status, answer.read1(MOST_ANSWER), secret))
    except urllib.error.HTTPError as e:
        with e:
            try:
                said = e.read1(MOST_ANSWER)
            except (OSError, http.client.HTTPException, ValueError):
                said = b""
        wait = e.headers.get("Retry-After", "")
        location = _printable(e.headers.get("Location", ""))[:MOST_LOCATION] if 300 <= e.code < 400 else ""
        where = f"; it points to {location}" if location else ""
        return Delivery(
            ok=False,
            text=_without(f"{_answer(e.code, said, secret)}{where}", secret),
            again=e.code in _LATER,
            wait=float(wait) if wait.isdigit() and len(wait) < 6 else 0.0,
        )
    except urllib.error.URLError as e:
        return Delivery(ok=False, text=_without(f"cannot be reached: {e.reason}", secret), again=True)
    except (OSError, http.client.HTTPException, ValueError) as e:
        return Delivery(ok=False, text=_without(f"cannot be reached: {type(e).__name__} {e}", secret), again=True)


def _answer(status: int, said: bytes, secret: Secret) -> str:
    text = _printable(said.decode("utf-8", "replace"))
    return _without(f"answered {status}{f': {text}' if text else ''}", secret)


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()


def _without_login(url: str) -> tuple[str, str]:
    """An address without the `name:password@` in it, which urllib takes for a part of the host; and that."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    return (parts._replace(netloc=host).geturl() if login else url), login


def _without(text: str, secret: Secret) -> str:
    """Some servers and some errors repeat what they were given, or a part of it."""
    bare, login = _without_login(secret.url)
    path = bare.partition("://")[2].partition("/")[2]
    parts = [part for part in re.split(r"[/?&=#;:]", f"{path}?{urlsplit(bare).query}") if len(part) >= LEAST_PART]
    whole = [secret.url, secret.token, path, login, *login.split(":", 1)]
    hidden = {form for each in [*whole, *parts] for form in (each, unquote(each)) if len(form) > 3}
    for each in sorted(hidden, key=len, reverse=True):
        text = text.replace(each, "***")
    return text


def _mail(target: NotifySettings, message: Message) -> Delivery:
    program = target.sendmail or shutil.which("sendmail") or next((p for p in SENDMAIL if os.access(p, os.X_OK)), "")
    if not program:
        return Delivery(ok=False, text="no sendmail program is there: install one, such as msmtp-mta, or name it")
    try:
        done = subprocess.run(
            [expanded(program), "-t", "-i"],
            input=mail_of(target, message),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=MAIL_SECONDS,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Delivery(ok=False, text=f"sendmail did not end in {MAIL_SECONDS:.0f} s", again=True)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        named = f", the `sendmail` of {target.label} in settings.toml," if target.sendmail else ""
        return Delivery(ok=False, text=f"{program}{named} cannot be run: {why}")
    said = " ".join(done.stdout.decode("utf-8", "replace").split())[:MOST_ANSWER]
    said = _printable(said)
    return Delivery(
        ok=done.returncode == 0,
        text=f"sendmail {'took it' if done.returncode == 0 else f'ended with exit code {done.returncode}'}"
        + (f": {said}" if said else ""),
        again=done.returncode == 75,  # EX_TEMPFAIL
    )

"""What of a shell's environment reaches a trainer, and what of it is never written down."""

import pytest

from presets.errors import UserError
from presets.machine.shell import Shell, environment, is_setting, shell_here, without_secrets
from tests.presets.machine.test_visible_gpus import Box

TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt"
SETTINGS = {
    "HF_HOME": "/data/hf",
    "HF_HUB_CACHE": "/data/hub",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "1",
    "HF_TOKEN_PATH": "/data/token",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "https_proxy": "http://proxy:3128",
    "HTTP_PROXY": "proxy:3128",
    "ALL_PROXY": "socks5h://proxy:1080",
    "NO_PROXY": "localhost,a@b",
    "no_proxy": "localhost",
    "SSL_CERT_FILE": "/ca.pem",
    "REQUESTS_CA_BUNDLE": "/ca.pem",
}
SECRETS = {
    "HF_TOKEN": TOKEN,
    "HUGGING_FACE_HUB_TOKEN": "another",
    "HTTPS_PROXY": "http://anna:geh@im@proxy:3128",
    "http_proxy": "anna:geheim@proxy:3128",
    "HF_ENDPOINT_2": f"https://hub/{TOKEN}",
}
OTHERS = {
    "PATH": "/bin",
    "LD_PRELOAD": "x.so",
    "AWS_SECRET_ACCESS_KEY": "k",
    "GITHUB_TOKEN": "t",
    "PYTHONPATH": "/x",
    "PROXY": "p",
    "CUDA_HOME": "/c",
    "MY_HF_TOKEN": "t",
}


def test_only_the_hub_s_settings_proxies_and_certificates_are_taken():
    told = shell_here({**SETTINGS, **SECRETS, **OTHERS})
    assert told.settings == {**SETTINGS, **SECRETS} and told.gpus is None
    told.require_sound()


def test_secrets_are_told_from_what_may_be_written_down():
    kept, secrets = Shell(settings={**SETTINGS, **SECRETS}, gpus=["GPU-a"]).divided()
    assert kept == Shell(settings=SETTINGS, gpus=["GPU-a"]) and secrets == SECRETS


def test_visible_gpus_travel_by_uuid():
    assert shell_here({"CUDA_VISIBLE_DEVICES": "3,MIG-b"}, nvml=Box()) == Shell(gpus=["GPU-2ddd", "MIG-bb22"])
    assert shell_here({"CUDA_VISIBLE_DEVICES": ""}, nvml=Box()) == Shell(gpus=[])


def test_the_shell_s_settings_stand_in_place_of_the_daemon_s():
    own = {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "old", "http_proxy": "old"}
    assert environment(own, Shell(settings={"HF_HOME": "/h"}), {"HF_TOKEN": "new"}) == {
        "PATH": "/bin",
        "HF_HOME": "/h",
        "HF_TOKEN": "new",
    }
    assert environment(own, None, {}) == own


@pytest.mark.parametrize(
    "shell",
    [
        Shell(settings={"LD_PRELOAD": "x"}),
        Shell(settings={"HF_A=B": "x"}),
        Shell(settings={"HF_HOME": "a\0b"}),
        Shell(settings={"HF_\0": "a"}),
        Shell(gpus=["0,1"]),
        Shell(gpus=[""]),
    ],
)
def test_what_no_shell_of_ours_sends_is_refused_without_its_value(shell):
    with pytest.raises(UserError) as caught:
        shell.require_sound()
    assert "'x'" not in str(caught.value)


def test_no_error_s_text_holds_a_secret():
    text = without_secrets(
        f"cannot reach http://anna:geh@im@proxy:3128 ({TOKEN}, another): /data/hf anna:geheim geheim",
        {**SETTINGS, **SECRETS},
    )
    assert text == "cannot reach http://***@proxy:3128 (***, ***): /data/hf *** ***"
    assert without_secrets("HF_HUB_OFFLINE=1 is set", SETTINGS) == "HF_HUB_OFFLINE=1 is set"


def test_names():
    assert all(map(is_setting, {**SETTINGS, **SECRETS})) and not any(map(is_setting, OTHERS))

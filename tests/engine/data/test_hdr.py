"""The curve from HDR to an ordinary screen, by its own standard's numbers."""

import numpy as np
import pytest

from engine.data.hdr import PEAK, WHITE, pq_code, pq_light, shown_light, tone_mapped
from presets.clips.video_index import HLG, PQ


def test_pq_is_the_standard_s() -> None:
    """Report BT.2408-7, table 1: reference white of 203 cd/m2 is 58% in PQ; 1000 cd/m2 is 75%."""
    assert pq_code(np.array([0.0, 203, 1000, 10000])) == pytest.approx([0, 0.5807, 0.7518, 1], abs=2e-4)
    light = np.linspace(0.01, 10000, 999)
    assert pq_light(pq_code(light)) == pytest.approx(light, rel=1e-6)


def test_the_curve_keeps_what_is_dark_and_bends_what_is_bright() -> None:
    light = np.linspace(0, 2 * PEAK, 4001)
    shown = shown_light(light)
    dark = light < 80
    assert shown[dark] == pytest.approx(light[dark], rel=1e-4, abs=1e-3)
    assert (np.diff(shown) >= -1e-6).all() and shown.max() == pytest.approx(WHITE, rel=1e-3)
    assert 150 < shown_light(np.array(WHITE)) < 180, "reference white is bright, and leaves room for highlights"
    assert shown_light(np.array(PEAK)) == pytest.approx(WHITE, rel=1e-3)


def grey(code: float) -> np.ndarray:
    return np.full((2, 2, 3), round(code * 65535), np.uint16)


def test_greys_stay_grey() -> None:
    for transfer in (PQ, HLG):
        last = -1
        for code in np.linspace(0, 1, 20):
            picture = tone_mapped(grey(code), transfer).astype(int)
            assert np.ptp(picture) <= 1 and picture.max() >= last
            last = picture.max()
        assert last >= 254


def test_what_both_call_the_same_light_looks_the_same() -> None:
    """Report BT.2408-7, table 1: grey card 38% in PQ and HLG, reference white 58% and 75%."""
    for pq, hlg in ((0.38, 0.38), (0.58, 0.75)):
        assert abs(int(tone_mapped(grey(pq), PQ)[0, 0, 0]) - int(tone_mapped(grey(hlg), HLG)[0, 0, 0])) <= 3
    # 26 cd/m2 of 203, on a screen of gamma 2.4
    assert tone_mapped(grey(0.38), PQ)[0, 0, 0] == pytest.approx(255 * (26 / 203) ** (1 / 2.4), abs=2)


def test_colours_of_bt709_come_back() -> None:
    """A colour that an ordinary screen can show, written as HDR, looks as it did."""
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087-0
    colour = np.array([150, 60, 30]) / 255
    light = WHITE * to_2020 @ colour**2.4
    code = np.rint(65535 * pq_code(light)).astype(np.uint16)
    picture = tone_mapped(np.broadcast_to(code, (2, 2, 3)), PQ)
    assert np.abs(picture[0, 0].astype(int) - [150, 60, 30]).max() <= 2
